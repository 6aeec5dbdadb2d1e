// The products of linear.h, put together from the kernels of each kind.
#include "linear.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "linear_layout.h"
#include "pool.h"

namespace lm {
namespace {

constexpr int64_t ITEM_WEIGHT_BYTES = 32 << 10;  // least weights per piece of work: what is below costs more to hand out than to do
constexpr int64_t ITEM_ROW_BYTES = 256 << 10;    // most activations per piece: they stay in the second cache beside the weights
constexpr int MOST_ITEM_ROWS = 120;
constexpr int LEAST_ITEM_ROWS = 24;
constexpr int CONVERT_ROWS = 8;      // rows per piece of conversion
constexpr int64_t ROWS_AT_ONCE = 2048;  // bounds the memory of converted rows
constexpr int PARTIAL_ROWS = 24;     // rows at once of a tile that is not full

void multiply(const TileProduct& product) {
    switch (product.kind) {
        case WEIGHT_F32:
        case WEIGHT_BF16: return float_tile(product);
        case WEIGHT_W8: return bytes_tile(product);
        default: return grouped_tile(product);
    }
}

// Memory of the calling thread, on a boundary of 64 bytes, kept for the next call.
char* scratch(size_t bytes) {
    thread_local std::unique_ptr<char[]> memory;
    thread_local size_t size = 0;
    if (size < bytes + 64) {
        memory.reset(new char[bytes + 64]);
        size = bytes + 64;
    }
    return reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(memory.get()), 64));
}

}  // namespace

void linear_tile(const Linear& linear, const void* converted, int64_t converted_stride, int first, int last, int tile,
                 float* out, int64_t out_stride) {
    const auto* header = static_cast<const PackedHeader*>(linear.packed);
    const int column = tile * TILE, columns = std::min(TILE, linear.out - column);
    alignas(64) float bias[TILE] = {};
    if (linear.bias) std::memcpy(bias, linear.bias + column, columns * sizeof(float));
    TileProduct product;
    product.weights = reinterpret_cast<const uint8_t*>(header + 1) + tile * tile_bytes(linear.kind, linear.in, linear.group, *header);
    product.header = header;
    product.kind = linear.kind, product.in = linear.in, product.group = linear.group;
    product.bias = bias;
    product.converted = static_cast<const char*>(converted) + first * converted_stride;
    product.converted_stride = converted_stride;
    out += first * out_stride + column;
    if (columns == TILE) {
        product.rows = last - first, product.out = out, product.out_stride = out_stride;
        return multiply(product);
    }
    alignas(64) float whole[PARTIAL_ROWS * TILE];
    product.out = whole, product.out_stride = TILE;
    for (int row = first; row < last; row += product.rows, out += product.rows * out_stride) {
        product.rows = std::min(PARTIAL_ROWS, last - row);
        multiply(product);
        for (int r = 0; r < product.rows; ++r) std::memcpy(out + r * out_stride, whole + r * TILE, columns * sizeof(float));
        product.converted += product.rows * converted_stride;
    }
}

}  // namespace lm

extern "C" void lm_linear(int kind, int out, int in, int group, const void* packed, const float* bias, const float* x, float* y,
                          int64_t rows) {
    using namespace lm;
    const Linear linear{kind, out, in, group, packed, bias};
    const int64_t stride = activation_bytes(kind, in, group);
    const int tiles = num_tiles(out);
    for (int64_t begin = 0; begin < rows; begin += ROWS_AT_ONCE) {
        const int count = static_cast<int>(std::min(ROWS_AT_ONCE, rows - begin));
        char* converted = scratch(count * stride);
        const float* from = x + begin * in;
        float* to = y + begin * out;
        auto convert = [&](int64_t item, int) {
            const int64_t last = std::min<int64_t>(count, (item + 1) * CONVERT_ROWS);
            for (int64_t row = item * CONVERT_ROWS; row < last; ++row)
                convert_row(kind, in, group, from + row * in, converted + row * stride);
        };
        const int item_rows = static_cast<int>(std::clamp<int64_t>(ITEM_ROW_BYTES / stride, LEAST_ITEM_ROWS, MOST_ITEM_ROWS));
        const int64_t runs = (count + item_rows - 1) / item_rows;
        const int64_t weights = tile_bytes(kind, in, group, *static_cast<const PackedHeader*>(packed));
        const int item_tiles = static_cast<int>(std::max<int64_t>(1, ITEM_WEIGHT_BYTES / weights));
        const int64_t tile_runs = (tiles + item_tiles - 1) / item_tiles;
        auto multiply = [&](int64_t item, int) {
            const int64_t run = item / tile_runs;
            const int first = static_cast<int>(count * run / runs), last = static_cast<int>(count * (run + 1) / runs);
            const int tile = static_cast<int>(item % tile_runs) * item_tiles;
            for (int t = tile; t < std::min(tiles, tile + item_tiles); ++t)
                linear_tile(linear, converted, stride, first, last, t, to, out);
        };
        parallel_for((count + CONVERT_ROWS - 1) / CONVERT_ROWS, convert);
        parallel_for(runs * tile_runs, multiply);
    }
}

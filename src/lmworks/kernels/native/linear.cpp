// The products of linear.h, put together from the kernels of each kind.
#include "linear.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "linear_layout.h"
#include "pool.h"

namespace lm {
namespace {

constexpr int64_t ITEM_BYTES = 32 << 10;  // least weights per piece of work: less costs more to hand out than to do
constexpr int ITEM_ROWS = 60;             // most rows per piece: enough to make little of fetching the weights
constexpr int CONVERT_ROWS = 8;           // rows per piece of conversion
constexpr int64_t ROWS_AT_ONCE = 2048;    // bounds the memory of converted rows
constexpr int PARTIAL_ROWS = 24;          // rows at once of a strip that is not full

void multiply(const StripProduct& product) {
    switch (product.kind) {
        case WEIGHT_F32:
        case WEIGHT_BF16: return multiply_float(product);
        case WEIGHT_W8: return multiply_bytes(product);
        default: return multiply_grouped(product);
    }
}

// The product with a strip that has fewer outputs than STRIP.
void multiply_partial(StripProduct product, int columns) {
    alignas(64) float whole[PARTIAL_ROWS * STRIP];
    float* out = product.out;
    const int64_t out_stride = product.out_stride;
    const int rows = product.rows;
    product.out = whole, product.out_stride = STRIP;
    for (int row = 0; row < rows; row += product.rows) {
        product.rows = std::min(PARTIAL_ROWS, rows - row);
        multiply(product);
        for (int r = 0; r < product.rows; ++r)
            std::memcpy(out + (row + r) * out_stride, whole + r * STRIP, columns * sizeof(float));
        product.converted += product.rows * product.converted_stride;
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
    const auto* strips = reinterpret_cast<const uint8_t*>(header + 1);
    const int64_t bytes = strip_bytes(linear.kind, linear.in, linear.group, *header);
    const int end = std::min(linear.out, (tile + 1) * TILE);
    for (int column = tile * TILE; column < end; column += STRIP) {
        const int columns = std::min(STRIP, end - column);
        alignas(64) float bias[STRIP] = {};
        if (linear.bias) std::memcpy(bias, linear.bias + column, columns * sizeof(float));
        StripProduct product;
        product.weights = strips + column / STRIP * bytes;
        product.header = header;
        product.kind = linear.kind, product.in = linear.in, product.group = linear.group;
        product.bias = bias;
        product.converted = static_cast<const char*>(converted) + first * converted_stride;
        product.converted_stride = converted_stride;
        product.rows = last - first;
        product.out = out + first * out_stride + column, product.out_stride = out_stride;
        if (columns == STRIP)
            multiply(product);
        else
            multiply_partial(product, columns);
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
        const int64_t bytes = STRIPS * strip_bytes(kind, in, group, *static_cast<const PackedHeader*>(packed));
        const int item_tiles = static_cast<int>(std::max<int64_t>(1, ITEM_BYTES / bytes));
        const int tile_runs = (tiles + item_tiles - 1) / item_tiles, row_runs = (count + ITEM_ROWS - 1) / ITEM_ROWS;
        // Rows go round first: their conversions are smaller than the weights, and stay in the caches.
        auto multiply = [&](int64_t item, int) {
            const int64_t run = item % row_runs;
            const int first = static_cast<int>(count * run / row_runs), last = static_cast<int>(count * (run + 1) / row_runs);
            const int tile = static_cast<int>(item / row_runs) * item_tiles;
            for (int t = tile; t < std::min(tiles, tile + item_tiles); ++t)
                linear_tile(linear, converted, stride, first, last, t, to, out);
        };
        parallel_for((count + CONVERT_ROWS - 1) / CONVERT_ROWS, convert);
        parallel_for(int64_t{row_runs} * tile_runs, multiply);
    }
}

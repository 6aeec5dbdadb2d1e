// Products with 8-bit weights, a scale per output, and 8-bit activations, a scale per row: exact sums of integers.
#include "linear_blocks.h"
#include "linear_layout.h"

namespace lm {
namespace {

template <int ROWS, int VECTORS>
void block(const TileProduct& p, int first, int column) {
    const uint8_t* weights = p.weights + column * 4;
    const char* x = p.converted + first * p.converted_stride;
    const int64_t stride = p.converted_stride, values = padded_values(WEIGHT_W8, p.in, 0);
    const int steps = (p.in + 3) / 4;
    Ints sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast_lanes(x + r * stride + values + 4);
    for (int step = 0; step < steps; ++step, weights += TILE * 4, x += 4) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = dot_bytes(sums[r][v], load_lanes(weights + v * LANES * 4), broadcast_lanes(x + r * stride));
    }
    const float* scales = reinterpret_cast<const float*>(p.weights + static_cast<int64_t>(TILE) * 4 * steps) + column;
    float* out = p.out + first * p.out_stride + column;
    const char* rows = p.converted + first * p.converted_stride + values;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        const Floats row_scale = broadcast(*reinterpret_cast<const float*>(rows + r * stride));
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) {
            const Floats scaled = to_float(sums[r][v]) * load(scales + v * LANES);
            store(out + r * p.out_stride + v * LANES, fma(scaled, row_scale, load(p.bias + column + v * LANES)));
        }
    }
}

}  // namespace

void bytes_tile(const TileProduct& p) {
    in_blocks<BYTES_ROWS, 1>(p.rows, [&](int first, int column, auto rows, auto vectors) {
        block<decltype(rows)::value, decltype(vectors)::value>(p, first, column);
    });
}

}  // namespace lm

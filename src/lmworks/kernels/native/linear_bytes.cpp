// Products with 8-bit weights, a scale per output, and 8-bit activations, a scale per row: exact sums of integers.
#include "linear_blocks.h"
#include "linear_layout.h"

namespace lm {
namespace {

template <int ROWS>
void multiply_rows(const StripProduct& p, int first) {
    const int64_t stride = p.converted_stride;
    const uint8_t* weights = p.weights;
    const char* x = p.converted + first * stride;
    const char* row_scale = x + padded_values(WEIGHT_W8, p.in, 0);
    Ints sums[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast_lanes(row_scale + 4 + r * stride);
    for (int step = (p.in + 3) / 4; step > 0; --step, weights += STRIP * 4, x += 4) {
        fetch_ahead<(ROWS >= 8)>(weights);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = dot_bytes(sums[r][v], load_lanes(weights + v * LANES * 4), broadcast_lanes(x + r * stride));
    }
    const float* scales = reinterpret_cast<const float*>(weights);
    float* out = p.out + first * p.out_stride;
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        const Floats scale = broadcast(*reinterpret_cast<const float*>(row_scale + r * stride));
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            const Floats scaled = to_float(sums[r][v]) * load(scales + v * LANES);
            store(out + r * p.out_stride + v * LANES, fma(scaled, scale, load(p.bias + v * LANES)));
        }
    }
}

}  // namespace

void multiply_bytes(const StripProduct& p) {
    in_runs<MOST_ROWS>(p, [&](int first, auto count) { multiply_rows<decltype(count)::value>(p, first); });
}

}  // namespace lm

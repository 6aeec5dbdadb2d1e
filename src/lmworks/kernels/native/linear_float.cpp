// Products with float and bfloat16 weights: one chain of sums per output, input after input.
#include "linear_blocks.h"
#include "linear_layout.h"

namespace lm {
namespace {

constexpr int FLOAT_ROWS = 6;

template <int KIND>
inline Floats multiply_add(Floats sum, const uint8_t* weights, const char* x) {
    if constexpr (KIND == WEIGHT_F32)
        return fma(broadcast(*reinterpret_cast<const float*>(x)), load(reinterpret_cast<const float*>(weights)), sum);
    else
        return dot_bf16(sum, load_lanes(weights), broadcast_lanes(x));
}

template <int KIND, int ROWS, int VECTORS>
void block(const TileProduct& p, int first, int column) {
    const uint8_t* weights = p.weights + column * 4;
    const char* x = p.converted + first * p.converted_stride;
    const int64_t stride = p.converted_stride;
    const int steps = KIND == WEIGHT_F32 ? p.in : (p.in + 1) / 2;
    Floats sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast(0.0f);
    for (int step = 0; step < steps; ++step, weights += TILE * 4, x += 4) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = multiply_add<KIND>(sums[r][v], weights + v * LANES * 4, x + r * stride);
    }
    float* out = p.out + first * p.out_stride + column;
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v)
            store(out + r * p.out_stride + v * LANES, sums[r][v] + load(p.bias + column + v * LANES));
}

template <int KIND>
void tile(const TileProduct& p) {
    in_blocks<FLOAT_ROWS, 1>(p.rows, [&](int first, int column, auto rows, auto vectors) {
        block<KIND, decltype(rows)::value, decltype(vectors)::value>(p, first, column);
    });
}

}  // namespace

void float_tile(const TileProduct& p) { p.kind == WEIGHT_F32 ? tile<WEIGHT_F32>(p) : tile<WEIGHT_BF16>(p); }

}  // namespace lm

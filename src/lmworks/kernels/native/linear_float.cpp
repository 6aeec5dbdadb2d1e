// Products with float and bfloat16 weights: one chain of sums per output, input after input.
#include "linear_blocks.h"
#include "linear_layout.h"

namespace lm {
namespace {

template <int KIND>
inline Floats multiply_add(Floats sum, const uint8_t* weights, const char* x) {
    if constexpr (KIND == WEIGHT_F32)
        return fma(broadcast(*reinterpret_cast<const float*>(x)), load(reinterpret_cast<const float*>(weights)), sum);
    else
        return dot_bf16(sum, load_lanes(weights), broadcast_lanes(x));
}

template <int KIND, int ROWS>
void multiply_rows(const StripProduct& p, int first) {
    const uint8_t* weights = p.weights;
    const char* x = p.converted + first * p.converted_stride;
    Floats sums[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = broadcast(0.0f);
    for (int step = KIND == WEIGHT_F32 ? p.in : (p.in + 1) / 2; step > 0; --step, weights += STRIP * 4, x += 4) {
        fetch_ahead<(ROWS >= 8)>(weights);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = multiply_add<KIND>(sums[r][v], weights + v * LANES * 4, x + r * p.converted_stride);
    }
    float* out = p.out + first * p.out_stride;
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v)
            store(out + r * p.out_stride + v * LANES, sums[r][v] + load(p.bias + v * LANES));
}

template <int KIND>
void multiply(const StripProduct& p) {
    constexpr int most = KIND == WEIGHT_F32 ? MOST_FLOAT_ROWS : MOST_ROWS;
    in_runs<most>(p, [&](int first, auto count) { multiply_rows<KIND, decltype(count)::value>(p, first); });
}

}  // namespace

void multiply_float(const StripProduct& p) { p.kind == WEIGHT_F32 ? multiply<WEIGHT_F32>(p) : multiply<WEIGHT_BF16>(p); }

}  // namespace lm

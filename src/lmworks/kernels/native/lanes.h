// Loops over vectors written so that compilers vectorize them without changing a single sum's order. Knows no operation.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lm {

constexpr int LANES = 16;

// exp(x) to about 1 unit in the last place within [-87, 88], without a branch (Cody and Waite's reduction, then a polynomial).
inline float exp_fast(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the rounded integer
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + (127 << 23);
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

inline float tanh_fast(float x) {
    const float a = x < 0 ? -x : x;
    // Near zero the quotient cancels; there the series is exact to the last place.
    const float square = x * x;
    const float series = x * (1.0f + square * (-0.333333333f + square * (0.133333333f - square * 0.0539682540f)));
    const float t = 1.0f - 2.0f / (exp_fast(2.0f * a) + 1.0f);
    const float far = x < 0 ? -t : t;
    return a < 0.2f ? series : far;
}

inline float sigmoid_fast(float x) { return 1.0f / (1.0f + exp_fast(-x)); }

// erf to 1.5e-7 absolutely (Abramowitz and Stegun, 7.1.26).
inline float erf_fast(float x) {
    const float a = x < 0 ? -x : x;
    const float t = 1.0f / (1.0f + 0.3275911f * a);
    const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const float y = 1.0f - p * exp_fast(-a * a);
    return x < 0 ? -y : y;
}

// Sum of f(i) over [0, n): 16 running sums, then those pairwise. One order whatever the machine.
template <typename F>
inline float sum_lanes(int n, F&& f) {
    float sums[LANES] = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; ++lane) sums[lane] += f(i + lane);
    for (int lane = 0; i + lane < n; ++lane) sums[lane] += f(i + lane);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    return sums[0];
}

inline float bf16_to_float(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

}  // namespace lm

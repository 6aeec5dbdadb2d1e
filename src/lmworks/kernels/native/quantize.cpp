// Rounding weights to 8 bits, as fast as they can be read: what a model's start waits for.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "pool.h"

namespace {

constexpr int MOST = 127;
constexpr int ROWS_AT_ONCE = 16;

// Rounded to the nearest float16, ties to even; for the magnitudes of scales, which are positive and finite.
float to_half_and_back(float x) {
    constexpr float SMALLEST = 0x1p-14f, LARGEST = 65504.0f;
    x = std::clamp(x, SMALLEST, LARGEST);
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits += 0xfff + (bits >> 13 & 1);
    bits &= ~0x1fffu;
    std::memcpy(&x, &bits, 4);
    return x;
}

// One group of a row: [n] floats to [n] bytes and their scale.
float round_group(const float* x, int n, bool half, int8_t* values) {
    float lanes[lm::LANES] = {};
    int i = 0;
    for (; i + lm::LANES <= n; i += lm::LANES)
        for (int lane = 0; lane < lm::LANES; ++lane) {
            const float size = std::fabs(x[i + lane]);
            lanes[lane] = lanes[lane] < size ? size : lanes[lane];
        }
    float largest = 0;
    for (float lane : lanes) largest = std::max(largest, lane);
    for (; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
    float scale = largest / MOST;
    if (scale == 0) scale = 1;
    scale = half ? to_half_and_back(scale) : std::max(scale, 0x1p-126f);
    for (i = 0; i < n; ++i) {
        // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even.
        const float rounded = x[i] / scale + 12582912.0f - 12582912.0f;
        values[i] = static_cast<int8_t>(static_cast<int32_t>(rounded > MOST ? MOST : rounded < -MOST ? -MOST : rounded));
    }
    return scale;
}

}  // namespace

extern "C" {

// Round a matrix [rows, columns] of floats (is_bf16: bfloat16) to values [rows, columns] and scales [rows, groups], a scale for
// every `group` columns (0: the row). half_scales: scales that float16 holds exactly.
void lm_quantize_int8(const void* weight, int is_bf16, int64_t rows, int columns, int group, int half_scales, int8_t* values,
                      float* scales) {
    const int size = group ? group : columns, groups = (columns + size - 1) / size;
    lm::parallel_for((rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, [&](int64_t item, int) {
        alignas(64) float wide[512];
        for (int64_t row = item * ROWS_AT_ONCE; row < std::min(rows, (item + 1) * ROWS_AT_ONCE); ++row)
            for (int g = 0; g < groups; ++g) {
                const int64_t at = row * columns + g * size;
                const int n = std::min(size, columns - g * size);
                const float* x = static_cast<const float*>(weight) + at;
                float* copy = n <= 512 ? wide : new float[n];
                if (is_bf16) {
                    for (int i = 0; i < n; ++i) copy[i] = lm::bf16_to_float(static_cast<const uint16_t*>(weight)[at + i]);
                    x = copy;
                }
                scales[row * groups + g] = round_group(x, n, half_scales, values + at);
                if (copy != wide) delete[] copy;
            }
    });
}

}

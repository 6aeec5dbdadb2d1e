// What is done to one row of floats at a time. Knows no program.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "program.h"

namespace lm {

template <typename F>
inline void map(int n, const float* x, float* y, F&& f) {
    for (int i = 0; i < n; ++i) y[i] = f(x[i]);
}

inline void activate(int kind, int n, const float* x, float* y) {
    switch (kind) {
        case ACT_SILU: map(n, x, y, [](float v) { return v * sigmoid_fast(v); }); break;
        case ACT_GELU: map(n, x, y, [](float v) { return 0.5f * v * (1.0f + erf_fast(v * 0.70710678f)); }); break;
        case ACT_GELU_TANH:
            map(n, x, y, [](float v) { return 0.5f * v * (1.0f + tanh_fast(0.7978845608f * (v + 0.044715f * v * v * v))); });
            break;
        case ACT_QUICK_GELU: map(n, x, y, [](float v) { return v * sigmoid_fast(1.702f * v); }); break;
        case ACT_RELU: map(n, x, y, [](float v) { return v > 0 ? v : 0.0f; }); break;
        case ACT_RELU2: map(n, x, y, [](float v) { return v > 0 ? v * v : 0.0f; }); break;
        default: if (y != x) std::memcpy(y, x, sizeof(float) * n);
    }
}

inline void normalize(int kind, int n, const float* x, const float* weight, const float* bias, float eps, float* y) {
    float mean = 0.0f;
    if (kind == NORM_LAYER) mean = sum_lanes(n, [&](int i) { return x[i]; }) / n;
    const float square = sum_lanes(n, [&](int i) { return (x[i] - mean) * (x[i] - mean); }) / n;
    const float inverse = 1.0f / std::sqrt(square + eps);
    if (weight && bias) for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
    else if (weight) for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse * weight[i];
    else for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse;
}

inline void rotate(const Rotary& rotary, int row, int position, float* x) {
    const int size = rotary.size, half = size / 2;
    const float* cos = rotary.cos + static_cast<int64_t>(rotary.by_row ? row : position) * size;
    const float* sin = rotary.sin + static_cast<int64_t>(rotary.by_row ? row : position) * size;
    if (rotary.interleaved) {
        for (int i = 0; i < size; i += 2) {
            const float a = x[i], b = x[i + 1];
            x[i] = a * cos[i] - b * sin[i];
            x[i + 1] = b * cos[i + 1] + a * sin[i + 1];
        }
        return;
    }
    for (int i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

inline void add_scaled(int n, const float* x, float number, const float* vector, float* out) {
    if (vector) for (int c = 0; c < n; ++c) out[c] += number * (x[c] * vector[c]);
    else if (number != 1.0f) for (int c = 0; c < n; ++c) out[c] += number * x[c];
    else for (int c = 0; c < n; ++c) out[c] += x[c];
}

}  // namespace lm

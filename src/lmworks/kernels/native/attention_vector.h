// Vectors of as many floats as the processor has in a register, and what attention computes in them. Knows no attention.
//
// Written with the compiler's vectors, so one text serves every level; only what they cannot say is an intrinsic. All
// operations go lane by lane, the two reductions across lanes in one fixed order: bits depend on nothing else.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lm::attention {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int COLUMNS = 4;  // vectors that lie side by side in a block of sums; 32 registers
#else
constexpr int COLUMNS = 2;  // 16 registers
#endif

using Vec = float __attribute__((vector_size(4 * LANES)));
using IntVec = int32_t __attribute__((vector_size(4 * LANES)));

#define LM_INLINE inline __attribute__((always_inline))

LM_INLINE Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

LM_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

template <int... I>
LM_INLINE Vec spread(float x, std::integer_sequence<int, I...>) {
    return Vec{((void)I, x)...};
}

// x in all lanes, bit for bit.
LM_INLINE Vec spread(float x) { return spread(x, std::make_integer_sequence<int, LANES>{}); }

// a * b + c, rounded once where the processor can.
LM_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

LM_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

#if defined(__clang__)
#define LM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// Lanes that are S apart change places.
template <int S, int... I>
LM_INLINE Vec exchanged(Vec v, std::integer_sequence<int, I...>) {
    return LM_SHUFFLE(v, v, (I ^ S)...);
}

template <int S>
LM_INLINE Vec exchanged(Vec v) {
    return exchanged<S>(v, std::make_integer_sequence<int, LANES>{});
}

LM_INLINE float max_of_lanes(Vec v) {
    if constexpr (LANES > 8) v = max(v, exchanged<LANES / 2>(v));
    if constexpr (LANES > 4) v = max(v, exchanged<4>(v));
    v = max(v, exchanged<2>(v));
    return max(v, exchanged<1>(v))[0];
}

LM_INLINE float sum_of_lanes(Vec v) {
    if constexpr (LANES > 8) v = v + exchanged<LANES / 2>(v);
    if constexpr (LANES > 4) v = v + exchanged<4>(v);
    v = v + exchanged<2>(v);
    return (v + exchanged<1>(v))[0];
}

// 0, 1, 2, ... in the lanes.
LM_INLINE IntVec lane_numbers() {
    IntVec v{};
    for (int i = 0; i < LANES; ++i) v[i] = i;
    return v;
}

// 2^x for x <= 127; 0 below -126, NaN for NaN. Relative error 2e-7.
LM_INLINE Vec exp2(Vec x) {
    constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which its low bits then hold
    const Vec shifted = x + SHIFT;
    const Vec f = x - (shifted - SHIFT);  // in [-1/2, 1/2]
    Vec p = spread(1.326472731e-3f);  // least greatest error among polynomials that are 1 at 0
    p = fma(p, f, spread(9.671512991e-3f));
    p = fma(p, f, spread(5.550733581e-2f));
    p = fma(p, f, spread(2.402224243e-1f));
    p = fma(p, f, spread(6.931470037e-1f));
    p = fma(p, f, spread(1.0f));
    const IntVec power = ((IntVec)shifted - 0x4B400000 + 127) << 23;
    return x < -126.0f ? Vec{} : p * (Vec)power;
}

// Absolute error 1e-7.
LM_INLINE Vec tanh(Vec x) {
    constexpr float TWICE_LOG2_E = 2.885390082f;
    const Vec magnitude = x < 0.0f ? -x : x;
    const Vec decayed = exp2(magnitude * -TWICE_LOG2_E);
    const Vec y = (1.0f - decayed) / (1.0f + decayed);
    return x < 0.0f ? -y : y;
}

// Lanes of a and b, 2 * G at a time: the first (or, with HIGH, the second) G of either in turn.
template <int G, bool HIGH, int... I>
LM_INLINE Vec interleaved(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return LM_SHUFFLE(a, b, (I / 4 * 4 + (HIGH ? 2 : 0) + I % G + (G == 1 ? I % 4 / 2 : 0) + (I / G % 2) * LANES)...);
}

// Lanes I * 4 ... of a, then of b: the even quarters or, with ODD, the odd ones.
template <bool ODD, int... I>
LM_INLINE Vec alternate_quads(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return LM_SHUFFLE(a, b, (I / 4 * 8 + (ODD ? 4 : 0) + I % 4)...);
}

// Lane N of each quad in all of the quad.
template <int N, int... I>
LM_INLINE Vec spread_in_quads(Vec v, std::integer_sequence<int, I...>) {
    return LM_SHUFFLE(v, v, (I / 4 * 4 + N)...);
}

template <int N>
LM_INLINE Vec spread_in_quads(Vec v) {
    return spread_in_quads<N>(v, std::make_integer_sequence<int, LANES>{});
}

// Sums over the quads of LANES / 4 vectors: quad i of the result is of vector i.
LM_INLINE Vec sums_of_quads(const Vec* v) {
    constexpr auto ALL = std::make_integer_sequence<int, LANES>{};
    if constexpr (LANES == 4) {
        return v[0];
    } else if constexpr (LANES == 8) {
        return alternate_quads<false>(v[0], v[1], ALL) + alternate_quads<true>(v[0], v[1], ALL);
    } else {
        const Vec a = alternate_quads<false>(v[0], v[1], ALL) + alternate_quads<true>(v[0], v[1], ALL);
        const Vec b = alternate_quads<false>(v[2], v[3], ALL) + alternate_quads<true>(v[2], v[3], ALL);
        return alternate_quads<false>(a, b, ALL) + alternate_quads<true>(a, b, ALL);
    }
}

// Transpose the squares that are the same quad of four rows: lane i of a quad of row j becomes lane j of that of row i.
LM_INLINE void transpose_quads(Vec* rows) {
    constexpr auto ALL = std::make_integer_sequence<int, LANES>{};
    const Vec ab_low = interleaved<1, false>(rows[0], rows[1], ALL), ab_high = interleaved<1, true>(rows[0], rows[1], ALL);
    const Vec cd_low = interleaved<1, false>(rows[2], rows[3], ALL), cd_high = interleaved<1, true>(rows[2], rows[3], ALL);
    rows[0] = interleaved<2, false>(ab_low, cd_low, ALL);
    rows[1] = interleaved<2, true>(ab_low, cd_low, ALL);
    rows[2] = interleaved<2, false>(ab_high, cd_high, ALL);
    rows[3] = interleaved<2, true>(ab_high, cd_high, ALL);
}

// A square of numbers of 32 bits: lane i of row j becomes lane j of row i.
LM_INLINE void transpose(Vec (&rows)[LANES]) {
    constexpr auto ALL = std::make_integer_sequence<int, LANES>{};
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4) transpose_quads(rows + i);
    // Quad q of row 4 * g + j now has number 4 * q + j of rows 4 * g ... 4 * g + 3; quads are left to change places.
    if constexpr (LANES == 8) {
#pragma GCC unroll 16
        for (int j = 0; j < 4; ++j) {
            const Vec a = rows[j], b = rows[4 + j];
            rows[j] = alternate_quads<false>(a, b, ALL);
            rows[4 + j] = alternate_quads<true>(a, b, ALL);
        }
    } else if constexpr (LANES == 16) {
        Vec pairs[LANES];
#pragma GCC unroll 16
        for (int j = 0; j < 4; ++j) {
            pairs[j] = alternate_quads<false>(rows[j], rows[4 + j], ALL);
            pairs[4 + j] = alternate_quads<true>(rows[j], rows[4 + j], ALL);
            pairs[8 + j] = alternate_quads<false>(rows[8 + j], rows[12 + j], ALL);
            pairs[12 + j] = alternate_quads<true>(rows[8 + j], rows[12 + j], ALL);
        }
#pragma GCC unroll 16
        for (int j = 0; j < 4; ++j) {
            rows[j] = alternate_quads<false>(pairs[j], pairs[8 + j], ALL);
            rows[4 + j] = alternate_quads<false>(pairs[4 + j], pairs[12 + j], ALL);
            rows[8 + j] = alternate_quads<true>(pairs[j], pairs[8 + j], ALL);
            rows[12 + j] = alternate_quads<true>(pairs[4 + j], pairs[12 + j], ALL);
        }
    }
}

}  // namespace lm::attention

// How elements of a cache are read and multiplied: as floats everywhere, as pairs of bfloat16 where the processor
// multiplies those. Knows neither blocks nor softmax.
//
// Either arithmetic works on vectors of 32-bit numbers. A product of a query with keys is a sum of steps over such numbers
// of the head, the keys in the lanes; a product of weights with values is one over keys (or pairs of keys), the head's
// dimensions in the lanes.
#pragma once
#include <algorithm>
#include <type_traits>

#include "attention_vector.h"

namespace lm::attention {

struct Bf16 {
    uint16_t bits;
};

// The float behind the numbers of a row of int8.
LM_INLINE float row_scale(const char* row, int head_dim) {
    float scale;
    std::memcpy(&scale, row + head_dim, sizeof scale);
    return scale;
}

template <class T>
LM_INLINE Vec as_floats(const T* p) {
    if constexpr (sizeof(T) == 4) {
        return load(reinterpret_cast<const float*>(p));
    } else if constexpr (sizeof(T) == 2) {
        uint16_t __attribute__((vector_size(2 * LANES))) half;
        std::memcpy(&half, p, sizeof half);
        return (Vec)(__builtin_convertvector(half, IntVec) << 16);
    } else {
        int8_t __attribute__((vector_size(LANES))) small;
        std::memcpy(&small, p, sizeof small);
        return __builtin_convertvector(small, Vec);
    }
}

// Floats, one product a step.
template <class T>
struct FloatArithmetic {
    static constexpr bool SCALED = sizeof(T) == 1;
    static constexpr int DIMS_PER_VECTOR = LANES;
    static constexpr int KEYS_PER_STEP = 1;
    static constexpr int VALUE_PADDING = LANES;

    static LM_INLINE Vec step(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }

    // Where a vector of a row begins, and how many of its numbers the row has.
    struct Part {
        int64_t byte;
        int there;
    };
    static Part part(int c, int head_dim) {
        return {static_cast<int64_t>(sizeof(T)) * c * LANES, std::min(head_dim - c * LANES, LANES)};
    }

    // A vector of a row, zeros behind its end.
    static LM_INLINE Vec head_numbers(const char* row, Part part) {
        if (part.there == LANES) return as_floats(reinterpret_cast<const T*>(row + part.byte));
        T some[LANES] = {};
        std::memcpy(some, row + part.byte, part.there * sizeof(T));
        return as_floats(some);
    }

    // Vector `c` of the values of a step's key.
    static Part value_part(int c, int head_dim) { return part(c, head_dim); }
    static LM_INLINE Vec values(const char* const* rows, int step, int64_t to_value, Part part, int /*half*/) {
        return head_numbers(rows[step] + to_value, part);
    }

    static LM_INLINE void store_weights(float* weights, int vector, Vec p) { store(weights + vector * LANES, p); }

    static void convert_query(const float* from, int head_dim, float* to, int width) {
        std::memcpy(to, from, head_dim * sizeof(float));
        std::memset(to + head_dim, 0, (width - head_dim) * sizeof(float));
    }
};

#if defined(__AVX512BF16__)

// Pairs of bfloat16, two products a step summed in float; query and weights are rounded to bfloat16.
template <class T>
struct PairArithmetic {
    static constexpr bool SCALED = sizeof(T) == 1;
    static constexpr int DIMS_PER_VECTOR = 2 * LANES;
    static constexpr int KEYS_PER_STEP = 2;
    static constexpr int VALUE_PADDING = 2 * LANES;

    static LM_INLINE Vec step(Vec a, Vec b, Vec sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
    }

    // Where a vector of a row begins, and which of its numbers the row has.
    struct Part {
        int64_t byte;
        __mmask32 there;
    };
    static Part part(int c, int head_dim) {
        const int there = head_dim - c * DIMS_PER_VECTOR;
        const __mmask32 mask = there >= DIMS_PER_VECTOR ? ~__mmask32{0} : (__mmask32{1} << there) - 1;
        return {static_cast<int64_t>(sizeof(T)) * c * DIMS_PER_VECTOR, mask};
    }

    // A vector of a row, zeros behind its end.
    static LM_INLINE Vec head_numbers(const char* row, Part part) {
        if constexpr (sizeof(T) == 2) {
            return (Vec)_mm512_maskz_loadu_epi16(part.there, row + part.byte);
        } else {  // whole numbers up to 127 are bfloat16 exactly
            const __m256i small = _mm256_maskz_loadu_epi8(part.there, row + part.byte);
            const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(small)));
            const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(small, 1)));
            return (Vec)(__m512i)_mm512_cvtne2ps_pbh(high, low);
        }
    }

    // Vector `c` of the values of a step's two keys, side by side: half of what one vector of a row holds.
    static Part value_part(int c, int head_dim) { return part(c / 2, head_dim); }
    static LM_INLINE Vec values(const char* const* rows, int step, int64_t to_value, Part part, int half) {
        const __m512i a = (__m512i)head_numbers(rows[2 * step] + to_value, part);
        const __m512i b = (__m512i)head_numbers(rows[2 * step + 1] + to_value, part);
        // In the lanes of 16 bits: 0, 32, 1, 33, ... or 16, 48, 17, 49, ...
        const IntVec lanes = lane_numbers() * 0x00010001 + (half ? 0x00300010 : 0x00200000);
        return (Vec)_mm512_permutex2var_epi16(a, (__m512i)lanes, b);
    }

    static LM_INLINE void store_weights(float* weights, int vector, Vec p) {
        const __m256bh rounded = _mm512_cvtneps_pbh(p);
        std::memcpy(weights + vector * (LANES / 2), &rounded, sizeof rounded);
    }

    static void convert_query(const float* from, int head_dim, float* to, int width) {
        for (int i = 0; i < width; i += LANES / 2) {
            const int there = head_dim - 2 * i;
            const __mmask16 mask = there >= LANES ? 0xffff : there <= 0 ? 0 : (1 << there) - 1;
            const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from + 2 * i));
            std::memcpy(to + i, &rounded, sizeof rounded);
        }
    }
};

template <class T>
using Arithmetic = std::conditional_t<sizeof(T) == 4, FloatArithmetic<T>, PairArithmetic<T>>;

#else

template <class T>
using Arithmetic = FloatArithmetic<T>;

#endif

}  // namespace lm::attention

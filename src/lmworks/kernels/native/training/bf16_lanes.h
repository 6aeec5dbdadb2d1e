// Sixteen numbers at a time, kept as bfloat16 and computed with as float32. Knows no operation. AVX-512 with BF16 only.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace lm {

using Bf16 = uint16_t;

inline __m512 widened(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m512 load16(const Bf16* from) { return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }

inline __m512 load16(const Bf16* from, __mmask16 lanes) { return widened(_mm256_maskz_loadu_epi16(lanes, from)); }

inline __m256i narrowed(__m512 values) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)); }

inline void store16(Bf16* to, __m512 values) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrowed(values)); }

inline void store16(Bf16* to, __m512 values, __mmask16 lanes) { _mm256_mask_storeu_epi16(to, lanes, narrowed(values)); }

// Values rounded to bfloat16.
inline __m512 rounded(__m512 values) { return widened(narrowed(values)); }

// The lanes of a vector that `left` further numbers fill.
inline __mmask16 lanes_of(int64_t left) { return left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1); }

// 2^x to about 2 units in the last place; 0 far below, also for -1e30, which stands for minus infinity.
inline __m512 exp2_16(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.5403530e-4f);
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(1.3333558e-3f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

constexpr float LOG2_E = 1.44269504088896341f;

inline __m512 sigmoid16(__m512 x) {
    const __m512 power = exp2_16(_mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-200.0f)), _mm512_set1_ps(-LOG2_E)));
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(_mm512_set1_ps(1.0f), power));
}

}  // namespace lm

// The few vector operations that the matrix products are written in, at three levels. Knows no layout beyond one vector.
//
// A vector's lanes are columns of the output, so lanes never mix and the order of a sum does not depend on how many there
// are. A lane of weights is 32 bits: one float, two bfloat16 or four bytes of successive inputs; activations are the same
// 32 bits in all lanes.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define LM_AVX512
#elif defined(__AVX2__)
#define LM_AVX2
#endif
#if defined(LM_AVX512) || defined(LM_AVX2)
#include <immintrin.h>
#endif

namespace lm {

#if defined(LM_AVX512)

constexpr int LANES = 16;
constexpr int MOST_FLOAT_ROWS = 12;
constexpr int MOST_ROWS = 12;
using Floats = __m512;
using Ints = __m512i;

// 8-bit weights are stored with this added: the instruction wants one operand unsigned.
constexpr int BYTE_OFFSET = 128;

inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline Ints load_lanes(const void* p) { return _mm512_loadu_si512(p); }
inline Floats load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Floats broadcast(float x) { return _mm512_set1_ps(x); }
inline Ints broadcast(int32_t x) { return _mm512_set1_epi32(x); }
inline Floats to_float(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Ints low_nibbles(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Ints high_nibbles(Ints x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
inline Floats dot_bf16(Floats sum, Ints weights, Ints x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(x));
}
// The instruction overwrites the sum. gcc 12 keeps a copy of the old one for no use and runs out of registers, unless told
// that something else looks at the sum here.
inline Ints dot_bytes(Ints sum, Ints weights, Ints x) {
    sum = _mm512_dpbusd_epi32(sum, weights, x);
    asm("" : "+v"(sum));
    return sum;
}
inline Ints dot_nibbles(Ints sum, Ints weights, Ints x) { return dot_bytes(sum, weights, x); }

#elif defined(LM_AVX2)

constexpr int LANES = 8;
constexpr int MOST_FLOAT_ROWS = 6;
constexpr int MOST_ROWS = 4;
using Floats = __m256;
using Ints = __m256i;

constexpr int BYTE_OFFSET = 0;

inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline Ints load_lanes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Floats load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline Floats broadcast(float x) { return _mm256_set1_ps(x); }
inline Ints broadcast(int32_t x) { return _mm256_set1_epi32(x); }
inline Floats to_float(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Ints low_nibbles(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Ints high_nibbles(Ints x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
inline Floats dot_bf16(Floats sum, Ints weights, Ints x) {
    const Ints upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    sum = fma(_mm256_castsi256_ps(_mm256_slli_epi32(weights, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), sum);
    return fma(_mm256_castsi256_ps(_mm256_and_si256(weights, upper)), _mm256_castsi256_ps(_mm256_and_si256(x, upper)), sum);
}
// Pairs of products of 0..15 with int8 fit into 16 bits; pairs with unsigned bytes would not, |int8| times int8 does.
inline Ints dot_nibbles(Ints sum, Ints weights, Ints x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), _mm256_set1_epi16(1)));
}
inline Ints dot_bytes(Ints sum, Ints weights, Ints x) {
    return dot_nibbles(sum, _mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
}

#else

// Vectors of 16 bytes exist on nearly every processor; the compiler splits them on the rest.
constexpr int LANES = 4;
constexpr int MOST_FLOAT_ROWS = 6;
constexpr int MOST_ROWS = 4;
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
typedef int16_t Shorts __attribute__((vector_size(16)));

constexpr int BYTE_OFFSET = 0;

template <typename V> inline V load_as(const void* p) {
    V x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline Floats load(const float* p) { return load_as<Floats>(p); }
inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }
inline Ints load_lanes(const void* p) { return load_as<Ints>(p); }
inline Floats broadcast(float x) { return Floats{x, x, x, x}; }
inline Ints broadcast(int32_t x) { return Ints{x, x, x, x}; }
inline Floats load_half(const uint16_t* p) {
    const Bits half{p[0], p[1], p[2], p[3]};
    const Floats size = reinterpret_cast<Floats>((half & 0x7fff) << 13) * 0x1p112f;  // exponents of 5 bits to those of 8
    return reinterpret_cast<Floats>(reinterpret_cast<Bits>(size) | (half & 0x8000) << 16);
}
inline Floats to_float(Ints x) { return __builtin_convertvector(x, Floats); }
inline Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
inline Ints low_nibbles(Ints x) { return x & 0x0f0f0f0f; }
inline Ints high_nibbles(Ints x) { return low_nibbles(x >> 4); }
inline Floats dot_bf16(Floats sum, Ints weights, Ints x) {
    const Bits w = reinterpret_cast<Bits>(weights), a = reinterpret_cast<Bits>(x);
    sum = fma(reinterpret_cast<Floats>(w << 16), reinterpret_cast<Floats>(a << 16), sum);
    return fma(reinterpret_cast<Floats>(w & 0xffff0000u), reinterpret_cast<Floats>(a & 0xffff0000u), sum);
}
// Two products of int8 fit into 16 bits: 2 * 128 * 127 < 2^15.
inline Ints dot_bytes(Ints sum, Ints weights, Ints x) {
    const Shorts w = reinterpret_cast<Shorts>(weights), a = reinterpret_cast<Shorts>(x);
    const Ints pairs = reinterpret_cast<Ints>(((w << 8) >> 8) * ((a << 8) >> 8) + (w >> 8) * (a >> 8));
    return sum + ((pairs << 16) >> 16) + (pairs >> 16);
}
inline Ints dot_nibbles(Ints sum, Ints weights, Ints x) { return dot_bytes(sum, weights, x); }

#endif

// Four bytes of activations in every lane.
inline Ints broadcast_lanes(const void* p) {
    int32_t lane;
    std::memcpy(&lane, p, sizeof lane);
    return broadcast(lane);
}

}  // namespace lm

// Products of small tiles in bfloat16 with sums in float32, and the layouts that their operands take. Knows no attention.
// AVX-512 with BF16 only.
//
// A product's left operand has plain rows, whose neighbors are summed in pairs; its right operand has rows of pairs: 32-bit
// words [inner / 2][columns], each two numbers that follow each other along the inner dimension.
#pragma once
#include "bf16_lanes.h"

#include <cstring>

namespace lm {

constexpr int TILE = 64;

// One 16 x 16 block of 32-bit words transposed.
inline void transpose_block(const uint32_t* from, int from_stride, uint32_t* to, int to_stride) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512i even_low = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), odd_low = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        const __m512i even_high = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const __m512i odd_high = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        _mm512_storeu_si512(to + j * to_stride, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
        _mm512_storeu_si512(to + (4 + j) * to_stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
        _mm512_storeu_si512(to + (8 + j) * to_stride, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
        _mm512_storeu_si512(to + (12 + j) * to_stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
    }
}

// [rows, columns] -> [columns, rows]; both multiples of 16.
inline void transpose_words(const uint32_t* from, int rows, int columns, uint32_t* to) {
    for (int i = 0; i < rows; i += 16)
        for (int j = 0; j < columns; j += 16) transpose_block(from + i * columns + j, columns, to + j * rows + i, rows);
}

// Words of two numbers, low before high.
inline __m512i paired(__m512 low, __m512 high) {
    const __m512i upper = _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrowed(high)), 16);
    return _mm512_or_si512(_mm512_cvtepu16_epi32(narrowed(low)), upper);
}

// Plain [TILE, width] -> pairs along rows [TILE / 2][width].
inline void pair_rows(const Bf16* from, int width, uint32_t* to) {
    for (int i = 0; i < TILE; i += 2)
        for (int j = 0; j < width; j += 16)
            _mm512_storeu_si512(to + i / 2 * width + j, paired(load16(from + i * width + j), load16(from + (i + 1) * width + j)));
}

// `rows` rows of `width` numbers that lie `stride` apart, as a full tile: what is missing is 0.
inline void copy_tile(const Bf16* from, int64_t stride, int rows, int width, Bf16* to) {
    for (int i = 0; i < rows; ++i) std::memcpy(to + i * width, from + i * stride, width * sizeof(Bf16));
    std::memset(to + rows * width, 0, static_cast<size_t>(TILE - rows) * width * sizeof(Bf16));
}

// COLUMNS vectors of 4 rows of the result.
template <int COLUMNS>
inline void product_block(
    const Bf16* left, int left_stride, const uint32_t* right, int right_stride, int inner, float* out, int out_stride, bool add) {
    __m512 sums[4][COLUMNS];
    for (int r = 0; r < 4; ++r)
        for (int c = 0; c < COLUMNS; ++c) sums[r][c] = add ? _mm512_loadu_ps(out + r * out_stride + 16 * c) : _mm512_setzero_ps();
    for (int k = 0; k < inner / 2; ++k) {
        __m512bh columns[COLUMNS];
        for (int c = 0; c < COLUMNS; ++c)
            columns[c] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(right + k * right_stride + 16 * c));
        for (int r = 0; r < 4; ++r) {
            int32_t pair;
            std::memcpy(&pair, left + r * left_stride + 2 * k, 4);
            const __m512bh row = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            for (int c = 0; c < COLUMNS; ++c) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], row, columns[c]);
        }
    }
    for (int r = 0; r < 4; ++r)
        for (int c = 0; c < COLUMNS; ++c) _mm512_storeu_ps(out + r * out_stride + 16 * c, sums[r][c]);
}

// out [rows, columns] (+)= left [rows, inner] · right; rows a multiple of 4, columns of 32, inner of 2; all contiguous.
inline void product(const Bf16* left, const uint32_t* right, int rows, int inner, int columns, float* out, bool add) {
    for (int c = 0; c < columns; c += columns - c >= 64 ? 64 : 32)
        for (int r = 0; r < rows; r += 4) {
            const Bf16* a = left + r * inner;
            float* to = out + r * columns + c;
            if (columns - c >= 64) product_block<4>(a, inner, right + c, columns, inner, to, columns, add);
            else product_block<2>(a, inner, right + c, columns, inner, to, columns, add);
        }
}

}  // namespace lm

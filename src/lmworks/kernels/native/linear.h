// Products of activations with weight matrices packed for this machine. Knows no model and no thread.
//
// Every output element is one sum over the input dimension in an order that depends on neither the number of rows nor the
// place of the row: a row's result is the same bits alone or among many.
#pragma once
#include <cstdint>

namespace lm {

// Columns of one tile of the output; packed weights are padded to it with zeros.
constexpr int TILE = 64;

enum WeightKind : int {
    WEIGHT_F32 = 0,   // float activations
    WEIGHT_BF16 = 1,  // activations rounded to bfloat16, float sums
    WEIGHT_W8 = 2,    // int8, one scale per output; activations int8, one scale per row, sums exact
    WEIGHT_W8G = 3,   // int8, one scale per output and group of inputs; activations int8, one scale per row and group
    WEIGHT_W4G = 4,   // unsigned 4 bits with scale and zero point per output and group; activations as W8G
};

// A packed matrix [out, in].
struct Linear {
    int kind;
    int out, in;
    int group;           // inputs per scale, a multiple of 32 (W8G, W4G); 0 elsewhere
    const void* packed;  // what lm_linear_pack wrote, on a boundary of 64 bytes
    const float* bias;   // [out], or null
};

// Bytes of one row of activations converted for such a matrix: an odd multiple of 64.
int64_t activation_bytes(int kind, int in, int group);

// Convert one row of float activations.
void convert_row(int kind, int in, int group, const float* x, void* converted);

// out[m, 64*tile ... ] = converted[m] . weight^T + bias for rows first <= m < last and the columns of one tile (fewer in the
// last). `converted` and `out` point at row 0; strides are bytes and floats. Rows are taken by twelve: some multiple of that,
// 60 to 120, makes the best of the weights once they are in the caches.
void linear_tile(const Linear& linear, const void* converted, int64_t converted_stride, int first, int last, int tile,
                 float* out, int64_t out_stride);

}  // namespace lm

extern "C" {
// Bytes that lm_linear_pack will write: scales and zero points that float16 holds exactly take two each, else four.
int64_t lm_linear_packed_bytes(int kind, int out, int in, int group, const float* scale, const float* zero);

// Pack a row-major matrix. `weight`: float (F32), bfloat16 (BF16), int8 (W8, W8G), uint8 holding one value 0..15 each (W4G),
// [out, in]. `scale`: float [out] (W8) or [out, groups] (W8G, W4G), else null. `zero`: float [out, groups] in units of the
// weights (W4G: value = scale * (q - zero); null: 8), else null. The last group of a row may be shorter.
void lm_linear_pack(int kind, int out, int in, int group, const void* weight, const float* scale, const float* zero,
                    void* packed);

// y[rows, out] = x[rows, in] . weight^T + bias, all float, on all threads of the pool.
void lm_linear(int kind, int out, int in, int group, const void* packed, const float* bias, const float* x, float* y,
               int64_t rows);
}

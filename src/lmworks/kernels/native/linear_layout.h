// Where things lie in packed weights and in converted rows. Knows no arithmetic.
//
// Packed: a header of 64 bytes, then the strips of STRIP outputs, each one run of memory that is read from front to back:
//   F32   [in][STRIP] floats
//   BF16  [in/2][STRIP][2]
//   W8    [in/4][STRIP][4] bytes, then STRIP float scales
//   W8G   per group of inputs: STRIP scales, then [group/4][STRIP][4] bytes
//   W4G   per group: STRIP scales, STRIP zero points unless all are 8, then [group/8][STRIP][4] bytes: low nibbles are inputs
//         0..3 of the eight, high nibbles inputs 4..7
// Bytes are the weights + BYTE_OFFSET. Scales and zero points are float16 where that loses nothing, else float; the zero points
// are stored as (zero - 8) / 8, what is missing from the offset below. Inputs and outputs are padded with zeros, outputs to
// whole tiles.
//
// Converted row: the values, padded with zeros to whole groups and to 64 bytes; then a float scale per group, then an int32
// offset per group: -BYTE_OFFSET (W4G: -8) times the sum of the group's values, which undoes the shift of the weights. W8
// is one group.
#pragma once
#include <cstdint>

#include "linear.h"
#include "linear_simd.h"

namespace lm {

// Outputs that are summed side by side: two vectors, so that many rows of them fit into the registers.
constexpr int VECTORS = 2;
constexpr int STRIP = VECTORS * LANES;
constexpr int STRIPS = TILE / STRIP;
static_assert(TILE % STRIP == 0);

constexpr int NIBBLE_OFFSET = 8;

struct PackedHeader {
    int32_t half_scales;  // scales and zero points are float16
    int32_t has_zeros;    // zero points are stored
    int32_t unused[14];
};
static_assert(sizeof(PackedHeader) == 64);

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

inline bool is_grouped(int kind) { return kind == WEIGHT_W8G || kind == WEIGHT_W4G; }

inline int num_tiles(int out) { return (out + TILE - 1) / TILE; }

// Groups of a row; 1 where scales are per row.
inline int num_groups(int kind, int in, int group) { return is_grouped(kind) ? (in + group - 1) / group : 1; }

// Values of a converted row of integers, padding included.
inline int64_t padded_values(int kind, int in, int group) {
    return round_up(is_grouped(kind) ? static_cast<int64_t>(num_groups(kind, in, group)) * group : in, 64);
}

// Bytes of the scales and zero points that precede a group of a strip.
inline int64_t group_header_bytes(const PackedHeader& header) {
    return STRIP * (header.half_scales ? 2 : 4) * (header.has_zeros ? 2 : 1);
}

inline int64_t group_bytes(int kind, int group, const PackedHeader& header) {
    return group_header_bytes(header) + static_cast<int64_t>(STRIP) * group / (kind == WEIGHT_W4G ? 2 : 1);
}

inline int64_t strip_bytes(int kind, int in, int group, const PackedHeader& header) {
    switch (kind) {
        case WEIGHT_F32: return static_cast<int64_t>(STRIP) * 4 * in;
        case WEIGHT_BF16: return STRIP * 2 * round_up(in, 2);
        case WEIGHT_W8: return STRIP * round_up(in, 4) + STRIP * 4;
        default: return num_groups(kind, in, group) * group_bytes(kind, group, header);
    }
}

// The product of some rows with one strip: what the kernels of a kind are given. `out` has room for all columns of the strip.
struct StripProduct {
    const uint8_t* weights;  // of this strip
    const PackedHeader* header;
    int kind, in, group;
    const float* bias;      // [STRIP]
    const char* converted;  // of the first row
    int64_t converted_stride;
    int rows;
    float* out;
    int64_t out_stride;
};

void multiply_float(const StripProduct& product);    // F32, BF16
void multiply_bytes(const StripProduct& product);    // W8
void multiply_grouped(const StripProduct& product);  // W8G, W4G

}  // namespace lm

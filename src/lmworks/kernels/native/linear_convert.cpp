// Conversion of activations to what a kind of weight is multiplied with.
//
// Integers: scale = max |x| / 127, value = x * (127 / max |x|) rounded to the nearest, ties to even. A row (group) that
// holds an infinity or NaN has such a scale, which makes its results NaN; one below TINY is zero.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "linear_layout.h"

namespace lm {
namespace {

constexpr float TINY = 1e-30f;

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline uint16_t to_bfloat16(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

// The greatest |x|, as bits: among numbers without sign they are ordered as the numbers are, and NaN is above them all.
inline float greatest(const float* x, int count) {
    int32_t most = 0;
    for (int i = 0; i < count; ++i) {
        const int32_t bits = static_cast<int32_t>(bits_of(x[i]) & 0x7fffffff);
        most = most > bits ? most : bits;
    }
    return float_of(static_cast<uint32_t>(most));
}

// Quantize `count` values, return their sum.
inline int32_t quantize(const float* x, int count, float inverse, int8_t* values) {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
    constexpr float ROUND = 12582912.0f;
    int32_t sum = 0;
    for (int i = 0; i < count; ++i) {
        const int8_t value = static_cast<int8_t>(bits_of(x[i] * inverse + ROUND));
        values[i] = value;
        sum += value;
    }
    return sum;
}

}  // namespace

int64_t activation_bytes(int kind, int in, int group) {
    int64_t bytes;
    switch (kind) {
        case WEIGHT_F32: bytes = static_cast<int64_t>(in) * 4; break;
        case WEIGHT_BF16: bytes = static_cast<int64_t>(in) * 2; break;
        default: bytes = padded_values(kind, in, group) + num_groups(kind, in, group) * int64_t{8};
    }
    // An odd number of cache lines: with a power of two, rows that are read side by side would fall into the same few sets.
    return round_up(bytes, 64) | 64;
}

void convert_row(int kind, int in, int group, const float* x, void* converted) {
    if (kind == WEIGHT_F32) {
        std::memcpy(converted, x, static_cast<size_t>(in) * 4);
        return;
    }
    if (kind == WEIGHT_BF16) {
        auto* values = static_cast<uint16_t*>(converted);
        for (int i = 0; i < in; ++i) values[i] = to_bfloat16(x[i]);
        if (in % 2) values[in] = 0;
        return;
    }
    const int groups = num_groups(kind, in, group);
    const int64_t padded = padded_values(kind, in, group);
    auto* values = static_cast<int8_t*>(converted);
    auto* scales = reinterpret_cast<float*>(values + padded);
    auto* offsets = reinterpret_cast<int32_t*>(scales + groups);
    const int length = kind == WEIGHT_W8 ? in : group;
    const int shift = kind == WEIGHT_W4G ? NIBBLE_OFFSET : BYTE_OFFSET;
    // The most common length as a constant: its loops become a few instructions each.
    const auto each = [&](const auto& call) {
        for (int g = 0, first = 0; g < groups; ++g, first += length)
            if (in - first >= 32 && length == 32)
                call(g, first, std::integral_constant<int, 32>{});
            else
                call(g, first, std::min(length, in - first));
    };
    // In passes over all groups: the end of one group's reduction does not wait for the beginning of the next.
    each([&](int g, int first, auto count) { scales[g] = greatest(x + first, count); });
    each([&](int g, int first, auto count) {
        const float most = scales[g];
        const float inverse = most >= TINY && most < __builtin_inff() ? 127.0f / most : 0.0f;
        scales[g] = most < TINY ? 0.0f : most / 127.0f;
        offsets[g] = -shift * quantize(x + first, count, inverse, values + first);
    });
    std::memset(values + in, 0, static_cast<size_t>(padded - in));
}

}  // namespace lm

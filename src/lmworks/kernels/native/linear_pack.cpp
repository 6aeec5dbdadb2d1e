// Packing of weights; the layout is told in linear_layout.h. Knows no products.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "linear_layout.h"
#include "pool.h"

namespace lm {
namespace {

struct Source {
    int kind, out, in, group;
    const void* weight;
    const float* scale;
    const float* zero;
};

// float16 of a number that float16 can hold; any other comes back as another number.
uint16_t to_half(float x) {
    const float scaled = (x < 0 ? -x : x) * 0x1p-112f;
    uint32_t bits;
    std::memcpy(&bits, &scaled, sizeof bits);
    bits = std::min(bits >> 13, 0x7bffu);
    return static_cast<uint16_t>(bits | (x < 0 ? 0x8000u : 0u));
}

float from_half(uint16_t half) {
    const uint32_t bits = (half & 0x7fffu) << 13;
    float size;
    std::memcpy(&size, &bits, sizeof size);
    return half & 0x8000 ? size * -0x1p112f : size * 0x1p112f;
}

bool fits_half(float x) { return from_half(to_half(x)) == x; }

// Zero points are stored as what the offset of the activations leaves over, in units of it.
float stored_zero(float zero) { return (zero - NIBBLE_OFFSET) / NIBBLE_OFFSET; }

PackedHeader header_of(const Source& s) {
    PackedHeader header{};
    if (!is_grouped(s.kind)) return header;
    const int64_t count = static_cast<int64_t>(s.out) * num_groups(s.kind, s.in, s.group);
    const bool zeros = s.kind == WEIGHT_W4G && s.zero;
    header.has_zeros = zeros && std::any_of(s.zero, s.zero + count, [](float z) { return z != NIBBLE_OFFSET; });
    const auto zero_fits = [](float z) { return fits_half(stored_zero(z)); };
    header.half_scales = std::all_of(s.scale, s.scale + count, fits_half) &&
                         (!header.has_zeros || std::all_of(s.zero, s.zero + count, zero_fits));
    return header;
}

// One value of the weights, `offset` added; nothing outside the matrix.
inline uint8_t byte_at(const Source& s, int row, int column, int offset) {
    if (row >= s.out || column >= s.in) return 0;
    const uint8_t value = static_cast<const uint8_t*>(s.weight)[static_cast<int64_t>(row) * s.in + column];
    return static_cast<uint8_t>(value + offset);
}

// [columns/4][STRIP][4] bytes of the inputs from `begin` on.
void pack_bytes(const Source& s, int strip, int begin, int count, uint8_t* to) {
    for (int row = 0; row < STRIP; ++row)
        for (int i = 0; i < count; ++i)
            to[(i / 4 * STRIP + row) * 4 + i % 4] = byte_at(s, strip * STRIP + row, begin + i, BYTE_OFFSET);
}

// [columns/8][STRIP][4]: low nibbles are inputs 0..3 of eight, high nibbles 4..7.
void pack_nibbles(const Source& s, int strip, int begin, int count, uint8_t* to) {
    for (int row = 0; row < STRIP; ++row)
        for (int i = 0; i < count; i += 8)
            for (int j = 0; j < 4; ++j) {
                const uint8_t low = byte_at(s, strip * STRIP + row, begin + i + j, 0);
                const uint8_t high = byte_at(s, strip * STRIP + row, begin + i + j + 4, 0);
                to[(i / 8 * STRIP + row) * 4 + j] = static_cast<uint8_t>(low | high << 4);
            }
}

// One number for each of the strip's outputs; 0 beyond the last.
template <typename Number>
void pack_numbers(const Source& s, int strip, bool half, const Number& number, uint8_t* to) {
    for (int row = 0; row < STRIP; ++row) {
        const float x = strip * STRIP + row < s.out ? number(strip * STRIP + row) : 0.0f;
        const uint16_t narrow = to_half(x);
        if (half)
            std::memcpy(to + row * 2, &narrow, 2);
        else
            std::memcpy(to + row * 4, &x, 4);
    }
}

void pack_grouped(const Source& s, const PackedHeader& header, int strip, uint8_t* to) {
    const int groups = num_groups(s.kind, s.in, s.group);
    const int64_t numbers = STRIP * (header.half_scales ? 2 : 4);
    for (int g = 0; g < groups; ++g, to += group_bytes(s.kind, s.group, header)) {
        const auto at = [&](int row) { return static_cast<int64_t>(row) * groups + g; };
        pack_numbers(s, strip, header.half_scales, [&](int row) { return s.scale[at(row)]; }, to);
        if (header.has_zeros)
            pack_numbers(s, strip, header.half_scales, [&](int row) { return stored_zero(s.zero[at(row)]); }, to + numbers);
        const auto pack = s.kind == WEIGHT_W4G ? pack_nibbles : pack_bytes;
        pack(s, strip, g * s.group, s.group, to + group_header_bytes(header));
    }
}

// [in][STRIP] of 4 bytes, or [in/2][STRIP][2] of 2.
template <typename Element>
void pack_floats(const Source& s, int strip, uint8_t* to) {
    constexpr int together = 4 / sizeof(Element);
    const auto* weight = static_cast<const Element*>(s.weight);
    auto* packed = reinterpret_cast<Element*>(to);
    for (int row = 0; row < STRIP; ++row)
        for (int64_t i = 0; i < round_up(s.in, together); ++i) {
            const int64_t from = strip * STRIP + row;
            packed[(i / together * STRIP + row) * together + i % together] =
                from < s.out && i < s.in ? weight[from * s.in + i] : Element{};
        }
}

void pack_strip(const Source& s, const PackedHeader& header, int strip, uint8_t* to) {
    switch (s.kind) {
        case WEIGHT_F32: return pack_floats<float>(s, strip, to);
        case WEIGHT_BF16: return pack_floats<uint16_t>(s, strip, to);
        case WEIGHT_W8: {
            const int inputs = static_cast<int>(round_up(s.in, 4));
            pack_bytes(s, strip, 0, inputs, to);
            return pack_numbers(s, strip, false, [&](int row) { return s.scale[row]; }, to + STRIP * int64_t{inputs});
        }
        default: return pack_grouped(s, header, strip, to);
    }
}

}  // namespace
}  // namespace lm

extern "C" {

int64_t lm_linear_packed_bytes(int kind, int out, int in, int group, const float* scale, const float* zero) {
    using namespace lm;
    const PackedHeader header = header_of({kind, out, in, group, nullptr, scale, zero});
    return sizeof header + num_tiles(out) * STRIPS * strip_bytes(kind, in, group, header);
}

void lm_linear_pack(int kind, int out, int in, int group, const void* weight, const float* scale, const float* zero,
                    void* packed) {
    using namespace lm;
    const Source source{kind, out, in, group, weight, scale, zero};
    const PackedHeader header = header_of(source);
    std::memcpy(packed, &header, sizeof header);
    auto* strips = static_cast<uint8_t*>(packed) + sizeof header;
    const int64_t bytes = strip_bytes(kind, in, group, header);
    parallel_for(num_tiles(out) * STRIPS, [&](int64_t strip, int) {
        pack_strip(source, header, static_cast<int>(strip), strips + strip * bytes);
    });
}

}

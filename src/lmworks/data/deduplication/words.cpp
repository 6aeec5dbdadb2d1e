// Words of UTF-8 texts as 64-bit hashes, and texts folded to what differs at most in case and white space.
//
// What a letter, a space and a folded letter are is told by tables made from Python's own, so that the result is that of
// the reference in shingles.py and fingerprints.py, bit for bit. Knows neither files nor duplicates.

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

constexpr uint64_t MULTIPLIER = 0x9E3779B97F4A7C15u;
constexpr uint32_t TABLED = 0x40000;  // code points from here on are no letters and fold to themselves
enum Class : uint8_t { OTHER = 0, WORD = 1, ALONE = 2, SPACE = 4 };

struct Tables {
    const uint8_t* classes;     // [TABLED] of Class
    const int32_t* fold;        // [TABLED] folded code point, or -1 - row of `expansions`
    const int32_t* expansions;  // [rows, 3] code points, zeros after the last
};

uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

uint32_t decode(const uint8_t*& at) {
    const uint32_t first = *at++;
    if (first < 0x80) return first;
    if (first < 0xE0) return (first & 0x1F) << 6 | (*at++ & 0x3Fu);
    const uint32_t second = *at++ & 0x3Fu;
    if (first < 0xF0) return (first & 0x0F) << 12 | second << 6 | (*at++ & 0x3Fu);
    const uint32_t third = *at++ & 0x3Fu;
    return (first & 0x07) << 18 | second << 12 | third << 6 | (*at++ & 0x3Fu);
}

uint8_t* encode(uint32_t point, uint8_t* at) {
    if (point < 0x80) {
        *at++ = static_cast<uint8_t>(point);
    } else if (point < 0x800) {
        *at++ = static_cast<uint8_t>(0xC0 | point >> 6);
        *at++ = static_cast<uint8_t>(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
        *at++ = static_cast<uint8_t>(0xE0 | point >> 12);
        *at++ = static_cast<uint8_t>(0x80 | (point >> 6 & 0x3F));
        *at++ = static_cast<uint8_t>(0x80 | (point & 0x3F));
    } else {
        *at++ = static_cast<uint8_t>(0xF0 | point >> 18);
        *at++ = static_cast<uint8_t>(0x80 | (point >> 12 & 0x3F));
        *at++ = static_cast<uint8_t>(0x80 | (point >> 6 & 0x3F));
        *at++ = static_cast<uint8_t>(0x80 | (point & 0x3F));
    }
    return at;
}

// Calls `take(code point, class)` with every folded code point of a text.
template <class Take>
inline void folded(const uint8_t* at, const uint8_t* end, const Tables& tables, Take&& take) {
    while (at < end) {
        const uint32_t point = decode(at);
        if (point >= TABLED) {
            take(point, OTHER);
            continue;
        }
        const int32_t to = tables.fold[point];
        if (to >= 0) {
            take(static_cast<uint32_t>(to), tables.classes[to]);
            continue;
        }
        const int32_t* expansion = tables.expansions + 3 * static_cast<int64_t>(-1 - to);
        for (int i = 0; i < 3 && expansion[i]; ++i) take(static_cast<uint32_t>(expansion[i]), tables.classes[expansion[i]]);
    }
}

}  // namespace

extern "C" {

// Word hashes of `count` texts that lie one after another, each followed by `padding` zeros.
// ends [count]: bytes up to each text's end. lengths [count]: words of each. Returns how many numbers were written.
int64_t lm_word_hashes(const uint8_t* text, const int64_t* ends, int64_t count, int64_t padding, const uint8_t* classes,
                       const int32_t* fold, const int32_t* expansions, uint64_t* hashes, int64_t* lengths) {
    const Tables tables{classes, fold, expansions};
    uint64_t* out = hashes;
    for (int64_t number = 0; number < count; ++number) {
        const uint64_t* first = out;
        uint64_t hash = 0;
        bool inside = false;
        folded(text + (number ? ends[number - 1] : 0), text + ends[number], tables, [&](uint32_t point, uint8_t kind) {
            if (kind == WORD) {
                hash = ((inside ? hash : 0) ^ point) * MULTIPLIER;
                inside = true;
                return;
            }
            if (inside) *out++ = mix(hash) | 1;
            inside = false;
            if (kind == ALONE) *out++ = mix(point * MULTIPLIER) | 1;
        });
        if (inside) *out++ = mix(hash) | 1;
        lengths[number] = out - first;
        memset(out, 0, static_cast<size_t>(padding) * sizeof(uint64_t));
        out += padding;
    }
    return out - hashes;
}

// Texts with case folded and runs of white space made one space, none at either end.
// out: room for three times the bytes. out_ends [count]: bytes up to each result's end.
void lm_fold(const uint8_t* text, const int64_t* ends, int64_t count, const uint8_t* classes, const int32_t* fold,
             const int32_t* expansions, uint8_t* out, int64_t* out_ends) {
    const Tables tables{classes, fold, expansions};
    uint8_t* at = out;
    for (int64_t number = 0; number < count; ++number) {
        const uint8_t* begin = at;
        bool gap = false;
        folded(text + (number ? ends[number - 1] : 0), text + ends[number], tables, [&](uint32_t point, uint8_t kind) {
            if (kind == SPACE) {
                gap = true;
                return;
            }
            if (gap && at != begin) *at++ = ' ';
            gap = false;
            at = encode(point, at);
        });
        out_ends[number] = at - out;
    }
}
}

// Stores new keys and values in the cache, in its type. Knows no attention.
#include <cstring>

#include "attention.h"
#include "attention_vector.h"

namespace lm {
namespace {

void store_row(const float* from, int count, float* to) { std::memcpy(to, from, count * sizeof(float)); }

// Rounded to the nearest, ties to even.
void store_row(const float* from, int count, uint16_t* to) {
    for (int i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, from + i, sizeof bits);
        const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        to[i] = static_cast<uint16_t>(from[i] == from[i] ? rounded : 0x7fc0);
    }
}

// On a grid of 127 steps each way; the step, a float, goes behind the numbers. What is not finite makes it NaN.
void store_row(const float* from, int count, int8_t* to) {
    using attention::LANES, attention::Vec;
    Vec most{}, faults{};
    const auto look_at = [&](Vec x) {
        most = attention::max(x < 0.0f ? -x : x, most);
        faults = faults + (x - x);
    };
    int i = 0;
    for (; i + LANES <= count; i += LANES) look_at(attention::load(from + i));
    float rest[LANES] = {};
    std::memcpy(rest, from + i, (count - i) * sizeof(float));
    look_at(attention::load(rest));
    const float greatest = attention::max_of_lanes(most), scale = greatest / 127.0f + attention::sum_of_lanes(faults);
    const float inverse = greatest > 0.0f ? 127.0f / greatest : 0.0f;
    constexpr float SHIFT = 12582912.0f;  // adding and taking 1.5 * 2^23 rounds to the nearest, ties to even
    for (i = 0; i < count; ++i) to[i] = static_cast<int8_t>(from[i] * inverse + SHIFT - SHIFT);
    std::memcpy(to + count, &scale, sizeof scale);
}

template <class T>
void write_as(const Cache& cache, int width, const StepSequence& s, const float* key, const float* value, int64_t stride,
              int first, int last) {
    T* data = static_cast<T*>(cache.data);
    const int64_t head = static_cast<int64_t>(cache.blocks) * cache.block_size * width, plane = cache.kv_heads * head;
    for (int row = first; row < last; ++row) {
        const int position = s.start + row - s.row, block = s.block_table[position / cache.block_size];
        T* to = data + (static_cast<int64_t>(block) * cache.block_size + position % cache.block_size) * width;
        for (int h = 0; h < cache.kv_heads; ++h) {
            store_row(key + row * stride + h * cache.head_dim, cache.head_dim, to + h * head);
            store_row(value + row * stride + h * cache.head_dim, cache.head_dim, to + h * head + plane);
        }
    }
}

}  // namespace

void write_cache(const Cache& cache, const StepSequence& sequence, const float* key, const float* value, int64_t stride,
                 int first, int last) {
    switch (cache.type) {
        case CACHE_F32: write_as<float>(cache, cache.head_dim, sequence, key, value, stride, first, last); break;
        case CACHE_BF16: write_as<uint16_t>(cache, cache.head_dim, sequence, key, value, stride, first, last); break;
        default: write_as<int8_t>(cache, cache.head_dim + sizeof(float), sequence, key, value, stride, first, last);
    }
}

}  // namespace lm

// The largest element of every row: what greedy decoding takes of logits.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "attention_vector.h"
#include "pool.h"

namespace {

constexpr int BLOCK = 1024;  // columns whose maximum is compared before anybody asks where it is

using lm::attention::IntVec;
using lm::attention::LANES;
using lm::attention::Vec;

// The largest of `n` elements; whether all of them are numbers.
bool largest_of(const float* x, int n, float& largest) {
    Vec most = lm::attention::spread(-std::numeric_limits<float>::infinity());
    IntVec odd{};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        const Vec values = lm::attention::load(x + i);
        odd |= values != values;
        most = lm::attention::max(most, values);
    }
    bool numbers = true;
    for (int lane = 0; lane < LANES; ++lane) numbers = numbers && !odd[lane];
    largest = lm::attention::max_of_lanes(most);
    for (; i < n; ++i) {
        numbers = numbers && x[i] == x[i];
        largest = largest < x[i] ? x[i] : largest;
    }
    return numbers;
}

// The first column of the maximum, or -1 where there is a NaN or nothing finite at the top.
int64_t argmax(const float* x, int64_t columns) {
    float best = -std::numeric_limits<float>::infinity();
    int64_t where = -1;
    for (int64_t begin = 0; begin < columns; begin += BLOCK) {
        const int n = static_cast<int>(std::min<int64_t>(columns - begin, BLOCK));
        float largest;
        if (!largest_of(x + begin, n, largest)) return -1;
        if (largest > best) {
            best = largest;
            where = begin;
        }
    }
    if (where < 0 || best > std::numeric_limits<float>::max()) return -1;
    while (x[where] != best) ++where;
    return where;
}

}  // namespace

extern "C" {

// Logits [rows, columns], rows `stride` floats apart, to columns [rows].
void lm_argmax(const float* logits, int64_t rows, int64_t columns, int64_t stride, int64_t* result) {
    lm::parallel_for(rows, [&](int64_t row, int) { result[row] = argmax(logits + row * stride, columns); });
}

}

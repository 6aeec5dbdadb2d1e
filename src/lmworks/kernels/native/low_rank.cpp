// The arithmetic of low_rank.h.
#include "low_rank.h"

#include <algorithm>
#include <vector>

#include "lanes.h"
#include "pool.h"

namespace lm {
namespace {

constexpr int TOGETHER = 4;     // sums at a time: one alone waits for each of its additions
constexpr int BLOCK = 64;       // outputs at a time
constexpr int SHARED_ROWS = 8;  // rows of one piece of work

inline float number(float x) { return x; }
inline float number(uint16_t x) { return bf16_to_float(x); }

template <typename Element>
void shrink(const LowRank& u, int in, const float* x, float* hidden) {
    const auto* down = static_cast<const Element*>(u.down);
    int j = 0;
    for (; j + TOGETHER <= u.rank; j += TOGETHER) {
        const Element* rows = down + static_cast<int64_t>(j) * in;
        float sums[TOGETHER][LANES] = {};
        int i = 0;
        for (; i + LANES <= in; i += LANES)
            for (int k = 0; k < TOGETHER; ++k)
                for (int lane = 0; lane < LANES; ++lane)
                    sums[k][lane] += x[i + lane] * number(rows[static_cast<int64_t>(k) * in + i + lane]);
        for (int k = 0; k < TOGETHER; ++k) {
            for (int lane = 0; i + lane < in; ++lane)
                sums[k][lane] += x[i + lane] * number(rows[static_cast<int64_t>(k) * in + i + lane]);
            for (int half = LANES / 2; half > 0; half /= 2)
                for (int lane = 0; lane < half; ++lane) sums[k][lane] += sums[k][lane + half];
            hidden[j + k] = u.scale * sums[k][0];
        }
    }
    for (; j < u.rank; ++j) {
        const Element* row = down + static_cast<int64_t>(j) * in;
        hidden[j] = u.scale * sum_lanes(in, [&](int i) { return x[i] * number(row[i]); });
    }
}

template <typename Element>
void expand(const LowRank& u, int out, const float* hidden, int first, int count, float* y) {
    for (int begin = 0; begin < count; begin += BLOCK) {
        const int n = std::min(BLOCK, count - begin);
        const Element* up = static_cast<const Element*>(u.up) + first + begin;
        float sums[BLOCK] = {};
        for (int j = 0; j < u.rank; ++j) {
            const Element* row = up + static_cast<int64_t>(j) * out;
            for (int c = 0; c < n; ++c) sums[c] += hidden[j] * number(row[c]);
        }
        for (int c = 0; c < n; ++c) y[begin + c] += sums[c];
    }
}

}  // namespace

void shrink_row(const LowRank& update, int in, const float* x, float* hidden) {
    (update.type ? shrink<uint16_t> : shrink<float>)(update, in, x, hidden);
}

void expand_row(const LowRank& update, int out, const float* hidden, int first, int count, float* y) {
    (update.type ? expand<uint16_t> : expand<float>)(update, out, hidden, first, count, y);
}

}  // namespace lm

extern "C" void lm_low_rank(const lm::LowRank* updates, const int32_t* chosen, int64_t rows, int in, int out, const float* x,
                            float* y) {
    using namespace lm;
    parallel_for((rows + SHARED_ROWS - 1) / SHARED_ROWS, [&](int64_t item, int) {
        std::vector<float> hidden;
        const int64_t last = std::min(rows, (item + 1) * SHARED_ROWS);
        for (int64_t m = item * SHARED_ROWS; m < last; ++m) {
            if (chosen[m] < 0 || updates[chosen[m]].rank == 0) continue;
            const LowRank& update = updates[chosen[m]];
            hidden.resize(std::max<size_t>(hidden.size(), update.rank));
            shrink_row(update, in, x + m * in, hidden.data());
            expand_row(update, out, hidden.data(), 0, out, y + m * out);
        }
    });
}

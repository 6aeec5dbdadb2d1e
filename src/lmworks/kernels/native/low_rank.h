// Updates of low rank (LoRA, arXiv:2106.09685) that rows of a product may get. Knows no model and no thread.
//
// A row's update is computed from that row alone, its sums in one order: it is the same bits in any company.
#pragma once
#include <cstdint>

namespace lm {

// y += up^T . (scale * down . x)
struct LowRank {
    const void* down;  // [rank, in]
    const void* up;    // [rank, out]
    int32_t rank;      // 0 for no update
    int32_t type;      // of both: 0 float, 1 bfloat16
    float scale;
};

// hidden[rank] = scale * down . x
void shrink_row(const LowRank& update, int in, const float* x, float* hidden);

// y[c] += hidden . up[:, first + c] for c in [0, count)
void expand_row(const LowRank& update, int out, const float* hidden, int first, int count, float* y);

}  // namespace lm

extern "C" {
// y[rows, out] += the updates of x[rows, in], on all threads of the pool; row m has update number `chosen[m]`, -1 for none.
void lm_low_rank(const lm::LowRank* updates, const int32_t* chosen, int64_t rows, int in, int out, const float* x, float* y);
}

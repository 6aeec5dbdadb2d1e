// Attention and the writing of a cache as calls from outside, one for all sequences of a step.
#include <algorithm>
#include <mutex>
#include <vector>

#include "attention.h"
#include "pool.h"

namespace lm {
namespace {

constexpr int WRITE_ROWS = 16;  // rows that one thread stores at once

// What calls share: one plan, and a list whose memory stays.
struct Calls {
    std::mutex lock;
    AttentionPlan plan;
    std::vector<StepSequence> sequences;
};

Calls& calls() {
    static Calls* made = new Calls;  // outlives every thread
    return *made;
}

StepSequence sequence_at(const int32_t* block_tables, int width, const int32_t* sequences, int n) {
    const int32_t* s = sequences + 4 * n;
    return {block_tables + static_cast<int64_t>(n) * width, s[0], s[1], s[2], s[3]};
}

}  // namespace
}  // namespace lm

extern "C" {

void lm_paged_attention(const lm::Cache* cache, const lm::ScoreRule* rule, const int32_t* block_tables, int width,
                        const int32_t* sequences, int num_sequences, const float* query, int64_t query_stride, int heads,
                        float* out, int64_t out_stride) {
    lm::Calls& calls = lm::calls();
    std::lock_guard<std::mutex> lock(calls.lock);
    calls.sequences.clear();
    for (int n = 0; n < num_sequences; ++n)
        calls.sequences.push_back(lm::sequence_at(block_tables, width, sequences, n));
    lm::AttentionPlan& plan = calls.plan;
    plan.plan(calls.sequences.data(), num_sequences, heads, cache->kv_heads, cache->head_dim, rule->window);
    auto piece = [&](int64_t item, int thread) {
        plan.run_piece(item, thread, *cache, *rule, query, query_stride, out, out_stride);
    };
    auto merge = [&](int64_t item, int) { plan.run_merge(item, *rule, out, out_stride); };
    lm::parallel_for(plan.pieces(), piece);
    if (plan.merges() > 0) lm::parallel_for(plan.merges(), merge);
}

void lm_write_cache(const lm::Cache* cache, const int32_t* block_tables, int width, const int32_t* sequences,
                    int num_sequences, const float* key, const float* value, int64_t stride) {
    for (int n = 0; n < num_sequences; ++n) {
        const lm::StepSequence s = lm::sequence_at(block_tables, width, sequences, n);
        auto write = [&](int64_t item, int) {
            const int first = s.row + static_cast<int>(item) * lm::WRITE_ROWS;
            lm::write_cache(*cache, s, key, value, stride, first, std::min(first + lm::WRITE_ROWS, s.row + s.length));
        };
        lm::parallel_for((s.length + lm::WRITE_ROWS - 1) / lm::WRITE_ROWS, write);
    }
}

}

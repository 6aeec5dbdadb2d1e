// Cuts a step's attention into pieces and merges what was cut through its keys. Knows no arithmetic.
#include <algorithm>

#include "attention.h"
#include "attention_task.h"
#include "pool.h"

namespace lm {
namespace {

using attention::Scratch;
using attention::Task;
using attention::TILE;

constexpr int MOST_ROWS = 192;      // of a piece: its queries and totals stay in the second-level cache
constexpr int MOST_SPLIT_ROWS = 32;  // a piece of more rows is long enough to keep a thread busy
constexpr int PIECES_PER_THREAD = 4;
constexpr int64_t LEAST_COST = 1024;  // of a piece worth claiming: about a microsecond
constexpr int64_t READING = 6;        // a key's cost before the first row, in rows

int64_t element_bytes(int type) { return type == CACHE_F32 ? 4 : type == CACHE_BF16 ? 2 : 1; }

int64_t row_bytes(const Cache& cache) {
    return cache.head_dim * element_bytes(cache.type) + (cache.type == CACHE_INT8 ? sizeof(float) : 0);
}

bool causal(const StepSequence& s) { return s.num_keys == 0; }

int keys_of(const StepSequence& s) { return causal(s) ? s.start + s.length : s.num_keys; }

// Tiles that some of a sequence's tokens see.
struct Tiles {
    int first, last;
    int count() const { return last - first; }
};

Tiles tiles_of(const StepSequence& s, int token, int tokens, int window) {
    const int first_seen = window > 0 ? std::max(0, s.start + token - window + 1) : 0;
    const int end_seen = causal(s) ? s.start + token + tokens : s.num_keys;
    return {first_seen / TILE, (end_seen + TILE - 1) / TILE};
}

// Floats at a cache line's beginning.
float* aligned(std::vector<float>& memory) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    return reinterpret_cast<float*>((address + 63) & ~uintptr_t{63});
}

void grow(std::vector<float>& memory, int64_t floats) {
    if (static_cast<int64_t>(memory.size()) < floats + 16) memory.resize(floats + floats / 4 + 16);
}

}  // namespace

void AttentionPlan::plan(const StepSequence* sequences, int num_sequences, int heads, int kv_heads, int head_dim, int window) {
    sequences_.assign(sequences, sequences + num_sequences);
    pieces_.clear();
    merges_.clear();
    heads_ = heads, kv_heads_ = kv_heads, head_dim_ = head_dim, window_ = window;
    num_partial_floats_ = 0;
    rows_ = 0;

    const int group = heads / kv_heads, most_tokens = std::max(1, MOST_ROWS / group);
    const auto each_block = [&](auto&& visit) {
        for (int n = 0; n < num_sequences; ++n)
            // The last tokens see most keys: they begin first, so that no long piece is left over at the end.
            for (int end = sequences[n].length; end > 0; end -= most_tokens) {
                const int token = std::max(0, end - most_tokens);
                visit(n, token, end - token);
            }
    };
    int64_t total = 0;
    each_block([&](int n, int token, int tokens) {
        total += cost(sequences_[n], token, tokens) * kv_heads;
        rows_ = std::max(rows_, tokens * group);
    });
    const int threads = pool_threads();
    const int64_t aim = threads == 1 ? total : std::max(LEAST_COST, total / (threads * PIECES_PER_THREAD));
    each_block([&](int n, int token, int tokens) { plan_tokens(n, token, tokens, aim); });

    grow(partials_, num_partial_floats_);
    if (static_cast<int>(scratch_.size()) < threads) scratch_.resize(threads);
    for (std::vector<float>& memory : scratch_) grow(memory, Scratch::floats(rows_, head_dim));
}

int64_t AttentionPlan::cost(const StepSequence& s, int token, int tokens) const {
    return tiles_of(s, token, tokens, window_).count() * TILE * (READING + tokens * heads_ / kv_heads_);
}

void AttentionPlan::plan_tokens(int sequence, int token, int tokens, int64_t aim) {
    const StepSequence& s = sequences_[sequence];
    const Tiles tiles = tiles_of(s, token, tokens, window_);
    const int64_t head_cost = cost(s, token, tokens);
    const int rows = tokens * heads_ / kv_heads_;
    const int parts = rows > MOST_SPLIT_ROWS ? 1 : static_cast<int>(std::min<int64_t>((head_cost + aim - 1) / aim, tiles.count()));
    if (parts == 1) {
        const int together = static_cast<int>(std::clamp<int64_t>(aim / head_cost, 1, kv_heads_));
        for (int h = 0; h < kv_heads_; h += together)
            pieces_.push_back({sequence, token, tokens, h, std::min(together, kv_heads_ - h), tiles.first, tiles.last, -1});
        return;
    }
    const int64_t floats = static_cast<int64_t>(rows) * attention::partial_floats(head_dim_);
    for (int h = 0; h < kv_heads_; ++h) {
        merges_.push_back({sequence, token, tokens, h, tiles.count(), num_partial_floats_});
        for (int p = 0; p < parts; ++p) {
            const int first = tiles.first + tiles.count() * p / parts, last = tiles.first + tiles.count() * (p + 1) / parts;
            pieces_.push_back({sequence, token, tokens, h, 1, first, last, num_partial_floats_ + (first - tiles.first) * floats});
        }
        num_partial_floats_ += tiles.count() * floats;
    }
}

int64_t AttentionPlan::pieces() const { return static_cast<int64_t>(pieces_.size()); }

int64_t AttentionPlan::merges() const { return static_cast<int64_t>(merges_.size()); }

// What does not depend on the cache and the tiles.
attention::Task AttentionPlan::task(int sequence, int token, int tokens, int kv_head, const ScoreRule& rule, float* out,
                                    int64_t out_stride) const {
    const StepSequence& s = sequences_[sequence];
    const int group = heads_ / kv_heads_, head = kv_head * group;
    Task task{};
    task.head_dim = head_dim_, task.group = group;
    task.block_table = s.block_table;
    task.position = s.start + token, task.tokens = tokens;
    task.keys = keys_of(s), task.causal = causal(s), task.window = window_;
    task.scale = rule.scale, task.softcap = rule.softcap;
    task.slopes = rule.slopes == nullptr ? nullptr : rule.slopes + head;
    task.sinks = rule.sinks == nullptr ? nullptr : rule.sinks + head;
    task.out = out + (s.row + token) * out_stride + head * head_dim_;
    task.out_stride = out_stride;
    return task;
}

void AttentionPlan::run_piece(int64_t index, int thread, const Cache& cache, const ScoreRule& rule, const float* query,
                              int64_t query_stride, float* out, int64_t out_stride) {
    const Piece& piece = pieces_[index];
    const StepSequence& s = sequences_[piece.sequence];
    Scratch scratch(aligned(scratch_[thread]), rows_, head_dim_);
    const int64_t head_bytes = static_cast<int64_t>(cache.blocks) * cache.block_size * row_bytes(cache);
    for (int h = piece.kv_head; h < piece.kv_head + piece.kv_heads; ++h) {
        Task task = this->task(piece.sequence, piece.token, piece.tokens, h, rule, out, out_stride);
        task.key = static_cast<const char*>(cache.data) + h * head_bytes;
        task.next_key = h + 1 < piece.kv_head + piece.kv_heads ? task.key + head_bytes : nullptr;
        task.fetched = h > piece.kv_head;
        task.to_value = cache.kv_heads * head_bytes;
        task.row_bytes = row_bytes(cache);
        task.block_size = cache.block_size;
        task.first_tile = piece.first_tile, task.last_tile = piece.last_tile;
        task.query = query + (s.row + piece.token) * query_stride + h * task.group * head_dim_;
        task.query_stride = query_stride;
        task.partials = piece.partial < 0 ? nullptr : aligned(partials_) + piece.partial;
        switch (cache.type) {
            case CACHE_F32: attention::attend_f32(task, scratch); break;
            case CACHE_BF16: attention::attend_bf16(task, scratch); break;
            default: attention::attend_int8(task, scratch);
        }
    }
}

void AttentionPlan::run_merge(int64_t index, const ScoreRule& rule, float* out, int64_t out_stride) {
    const Merge& merge = merges_[index];
    const Task task = this->task(merge.sequence, merge.token, merge.tokens, merge.kv_head, rule, out, out_stride);
    const int64_t floats = attention::partial_floats(head_dim_);
    float* partials = aligned(partials_) + merge.partial;
    for (int row = 0; row < task.rows(); ++row) {
        // The first tile's partial result takes in the others; adding it to nothing would give the same bits.
        float* total = partials + row * floats;
        for (int tile = 1; tile < merge.tiles; ++tile) {
            const float* part = total + static_cast<int64_t>(tile) * task.rows() * floats;
            attention::add_partial(total, part[0], part[1], part + attention::VALUES_AT, head_dim_);
        }
        attention::finish(total, task, row);
    }
}

}  // namespace lm

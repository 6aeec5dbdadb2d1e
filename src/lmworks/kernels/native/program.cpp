#include "program.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <vector>

#include "lanes.h"
#include "pool.h"

namespace lm {
namespace {

constexpr int ROW_BLOCK = 120;    // rows of one piece of a product; the kernels take twelve at a time
constexpr int SMALL_ROWS = 8;     // rows of one piece of an operation by rows
constexpr int MATRICES = 3;      // of one instruction at most
constexpr int GATED_ROWS = 60;    // rows of one piece of a gated product, whose gates stay in a core's cache

// Memory that grows and is never shrunk, aligned to cache lines.
class Buffer {
public:
    void reserve(size_t bytes) {
        if (bytes <= capacity_) return;
        capacity_ = (bytes + bytes / 4 + 63) / 64 * 64;
        data_.reset(static_cast<char*>(std::aligned_alloc(64, capacity_)));
    }
    char* bytes() const { return data_.get(); }
    float* floats() const { return reinterpret_cast<float*>(data_.get()); }

private:
    struct Free { void operator()(char* p) const { std::free(p); } };
    std::unique_ptr<char, Free> data_;
    size_t capacity_ = 0;
};

template <typename F>
inline void map(int n, const float* x, float* y, F&& f) {
    for (int i = 0; i < n; ++i) y[i] = f(x[i]);
}

void activate(int kind, int n, const float* x, float* y) {
    switch (kind) {
        case ACT_SILU: map(n, x, y, [](float v) { return v * sigmoid_fast(v); }); break;
        case ACT_GELU: map(n, x, y, [](float v) { return 0.5f * v * (1.0f + erf_fast(v * 0.70710678f)); }); break;
        case ACT_GELU_TANH:
            map(n, x, y, [](float v) { return 0.5f * v * (1.0f + tanh_fast(0.7978845608f * (v + 0.044715f * v * v * v))); });
            break;
        case ACT_QUICK_GELU: map(n, x, y, [](float v) { return v * sigmoid_fast(1.702f * v); }); break;
        case ACT_RELU: map(n, x, y, [](float v) { return v > 0 ? v : 0.0f; }); break;
        case ACT_RELU2: map(n, x, y, [](float v) { return v > 0 ? v * v : 0.0f; }); break;
        default: if (y != x) std::memcpy(y, x, sizeof(float) * n);
    }
}

void normalize(int kind, int n, const float* x, const float* weight, const float* bias, float eps, float* y) {
    float mean = 0.0f;
    if (kind == NORM_LAYER) mean = sum_lanes(n, [&](int i) { return x[i]; }) / n;
    const float square = sum_lanes(n, [&](int i) { return (x[i] - mean) * (x[i] - mean); }) / n;
    const float inverse = 1.0f / std::sqrt(square + eps);
    if (weight && bias) for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
    else if (weight) for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse * weight[i];
    else for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse;
}

void rotate(const Rotary& rotary, int row, int position, float* x) {
    const int size = rotary.size, half = size / 2;
    const float* cos = rotary.cos + static_cast<int64_t>(rotary.by_row ? row : position) * size;
    const float* sin = rotary.sin + static_cast<int64_t>(rotary.by_row ? row : position) * size;
    if (rotary.interleaved) {
        for (int i = 0; i < size; i += 2) {
            const float a = x[i], b = x[i + 1];
            x[i] = a * cos[i] - b * sin[i];
            x[i + 1] = b * cos[i + 1] + a * sin[i + 1];
        }
        return;
    }
    for (int i = 0; i < half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

class Program;
struct Stage;
void convert(Stage& stage, int64_t item, int thread);

// One piece of work after another, with all that its pieces need to know.
struct Stage {
    Program* program;
    const Instruction* instruction;
    void (*work)(Stage&, int64_t item, int thread);
    int rows = 0;
    int64_t tiles[3] = {};
    AttentionPlan* plan = nullptr;
    Buffer* converted = nullptr;
    int64_t converted_stride = 0;
    const int32_t* chosen = nullptr;  // of its rows, see Step
};

class Program {
public:
    Program(const Instruction* instructions, int count, const int32_t* widths, int num_buffers, const Cache* caches, int num_caches)
        : instructions_(instructions, instructions + count), widths_(widths, widths + num_buffers),
          caches_(caches, caches + num_caches), buffers_(num_buffers) {}

    void set_rotaries(const Rotary* rotaries, int count) { rotaries_.assign(rotaries, rotaries + count); }

    void run(const Step& step) {
        step_ = step;
        prepare();
        operations_.clear();
        for (Stage& stage : stages_) operations_.push_back({call, &stage, items_[&stage - stages_.data()]});
        run_operations(operations_.data(), static_cast<int>(operations_.size()));
    }

    // As run, one operation at a time; adds the seconds of each to the place of its instruction's kind.
    void profile(const Step& step, double* seconds) {
        step_ = step;
        prepare();
        for (size_t n = 0; n < stages_.size(); ++n) {
            const Operation operation{call, &stages_[n], items_[n]};
            const auto begin = std::chrono::steady_clock::now();
            run_operations(&operation, 1);
            const bool converts = stages_[n].work == convert;
            seconds[converts ? NUM_OPS : stages_[n].instruction->op] +=
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        }
    }

    float* row(int buffer, int64_t index) { return base(buffer) + index * widths_[buffer]; }

    const Step& step() const { return step_; }
    const Cache& cache(int layer) const { return caches_[layer]; }
    const Rotary* rotary(int index) const { return index < 0 ? nullptr : &rotaries_[index]; }
    int width(int buffer) const { return widths_[buffer]; }
    float* scratch(int thread) { return scratch_[thread].floats(); }
    // The update that a product's matrix has for a row, null for none, and its row's numbers between the two matrices.
    const LowRank* update(const Stage& s, int64_t row, int matrix) const {
        if (s.chosen[row] < 0) return nullptr;
        const LowRank& found = step_.updates[s.chosen[row]][s.instruction->sites[matrix]];
        return found.rank ? &found : nullptr;
    }
    float* hidden(int64_t row, int matrix) { return hidden_.floats() + (row * MATRICES + matrix) * step_.max_rank; }

private:
    static void call(void* context, int64_t item, int thread) {
        Stage& stage = *static_cast<Stage*>(context);
        stage.work(stage, item, thread);
    }

    float* base(int buffer) {
        return buffer == instructions_.back().out ? step_.result : buffers_[buffer].floats();
    }

    void prepare();
    void add(const Instruction& instruction, void (*work)(Stage&, int64_t, int), int rows, int64_t items, AttentionPlan* plan = nullptr) {
        stages_.push_back({this, &instruction, work, rows, {}, plan});
        items_.push_back(items);
    }
    void add_product(const Instruction& instruction, int rows);
    AttentionPlan& plan_for(const Instruction& instruction);
    // From here on rows are the selected ones.
    void choose_selected() {
        selecting_ = true;
        selected_.clear();
        if (step_.chosen)
            for (int m = 0; m < step_.num_selected; ++m) selected_.push_back(step_.chosen[step_.selected[m]]);
    }

    std::vector<Instruction> instructions_;
    std::vector<int32_t> widths_;
    std::vector<Cache> caches_;
    std::vector<Rotary> rotaries_;
    std::vector<Buffer> buffers_;
    std::vector<Buffer> scratch_;
    Buffer converted_;
    Buffer hidden_;
    std::vector<int32_t> selected_;  // `chosen` of the selected rows
    bool selecting_ = false;
    Step step_{};
    std::vector<Stage> stages_;
    std::vector<int64_t> items_;
    std::vector<Operation> operations_;
    // One plan for all layers with the same heads and window.
    struct Planned { int heads, kv_heads, head_dim, window; bool fresh; std::unique_ptr<AttentionPlan> plan; };
    std::vector<Planned> planned_;
};

template <typename F>
inline void each_row(Stage& stage, int64_t item, F&& f) {
    const int64_t last = std::min<int64_t>((item + 1) * SMALL_ROWS, stage.rows);
    for (int64_t m = item * SMALL_ROWS; m < last; ++m) f(m);
}

int64_t row_items(int rows) { return (rows + SMALL_ROWS - 1) / SMALL_ROWS; }

void embed(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        const int64_t at = static_cast<int64_t>(s.program->step().tokens[m]) * i.width;
        float* out = s.program->row(i.out, m);
        if (i.table_type == CACHE_F32) {
            const float* from = static_cast<const float*>(i.table) + at;
            for (int c = 0; c < i.width; ++c) out[c] = from[c] * i.number;
        } else {
            const uint16_t* from = static_cast<const uint16_t*>(i.table) + at;
            for (int c = 0; c < i.width; ++c) out[c] = bf16_to_float(from[c]) * i.number;
        }
    });
}

void add_table(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        const int64_t place = i.count == 1 ? 0 : s.program->step().positions[m];
        const float* from = static_cast<const float*>(i.table) + place * i.width;
        float* out = s.program->row(i.out, m);
        for (int c = 0; c < i.width; ++c) out[c] += from[c];
    });
}

void norm(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        normalize(i.norm, i.width, s.program->row(i.in, m), i.weight, i.bias, i.eps, s.program->row(i.out, m));
    });
}

void convert(Stage& s, int64_t item, int) {
    const Linear& linear = s.instruction->linears[0];
    each_row(s, item, [&](int64_t m) {
        convert_row(linear.kind, linear.in, linear.group, s.program->row(s.instruction->in, m),
                    s.converted->bytes() + m * s.converted_stride);
    });
}

// The first half of the updates that rows get: one matrix and some rows.
void shrink(Stage& s, int64_t item, int) {
    const int64_t blocks = row_items(s.rows);
    const int matrix = static_cast<int>(item / blocks);
    each_row(s, item % blocks, [&](int64_t m) {
        if (const LowRank* update = s.program->update(s, m, matrix))
            shrink_row(*update, s.instruction->linears[matrix].in, s.program->row(s.instruction->in, m), s.program->hidden(m, matrix));
    });
}

// The rows and columns of one piece of a product: blocks of rows are innermost, so that a tile's weights are read once.
struct Piece { int linear, tile, first, last; };

Piece piece_of(const Stage& s, int64_t item, int block) {
    const int64_t blocks = (s.rows + block - 1) / block;
    int64_t tile = item / blocks;
    int linear = 0;
    while (tile >= s.tiles[linear]) tile -= s.tiles[linear++];
    const int first = static_cast<int>(item % blocks) * block;
    return {linear, static_cast<int>(tile), first, std::min(first + block, s.rows)};
}

int columns_of(const Linear& linear, int tile) { return std::min(TILE, linear.out - tile * TILE); }

// The second half, for what `linear_tile` has just written.
void expand(Stage& s, const Piece& p, int matrix, float* out, int64_t stride) {
    if (!s.chosen) return;
    const Linear& l = s.instruction->linears[matrix];
    const int column = p.tile * TILE;
    for (int m = p.first; m < p.last; ++m)
        if (const LowRank* update = s.program->update(s, m, matrix))
            expand_row(*update, l.out, s.program->hidden(m, matrix), column, columns_of(l, p.tile), out + m * stride + column);
}

void linear(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    const Piece p = piece_of(s, item, ROW_BLOCK);
    const Linear& l = i.linears[p.linear];
    float* out = s.program->row(i.out, 0) + i.offsets[p.linear];
    const int64_t stride = s.program->width(i.out);
    linear_tile(l, s.converted->bytes(), s.converted_stride, p.first, p.last, p.tile, out, stride);
    expand(s, p, p.linear, out, stride);
    if (i.activation == ACT_NONE) return;
    for (int m = p.first; m < p.last; ++m) {
        float* at = out + m * stride + static_cast<int64_t>(p.tile) * TILE;
        activate(i.activation, columns_of(l, p.tile), at, at);
    }
}

void add_scaled(int n, const float* x, float number, const float* vector, float* out) {
    if (vector) for (int c = 0; c < n; ++c) out[c] += number * (x[c] * vector[c]);
    else if (number != 1.0f) for (int c = 0; c < n; ++c) out[c] += number * x[c];
    else for (int c = 0; c < n; ++c) out[c] += x[c];
}

void linear_add(Stage& s, int64_t item, int thread) {
    const Instruction& i = *s.instruction;
    const Piece p = piece_of(s, item, ROW_BLOCK);
    const Linear& l = i.linears[0];
    float* sums = s.program->scratch(thread);  // [ROW_BLOCK, TILE]
    const int64_t column = static_cast<int64_t>(p.tile) * TILE;
    linear_tile(l, s.converted->bytes(), s.converted_stride, p.first, p.last, p.tile, sums - column - p.first * TILE, TILE);
    expand(s, p, 0, sums - column - p.first * TILE, TILE);
    for (int m = p.first; m < p.last; ++m)
        add_scaled(columns_of(l, p.tile), sums + (m - p.first) * TILE, i.number, i.vector ? i.vector + column : nullptr,
                   s.program->row(i.out, m) + column);
}

void gated(Stage& s, int64_t item, int thread) {
    const Instruction& i = *s.instruction;
    const Piece p = piece_of(s, item, GATED_ROWS);
    const Linear &gate = i.linears[0], &up = i.linears[1];
    float* gates = s.program->scratch(thread);  // [GATED_ROWS, TILE]
    const int64_t column = static_cast<int64_t>(p.tile) * TILE;
    linear_tile(gate, s.converted->bytes(), s.converted_stride, p.first, p.last, p.tile, gates - column - p.first * TILE, TILE);
    expand(s, p, 0, gates - column - p.first * TILE, TILE);
    float* out = s.program->row(i.out, 0);
    const int64_t stride = s.program->width(i.out);
    linear_tile(up, s.converted->bytes(), s.converted_stride, p.first, p.last, p.tile, out, stride);
    expand(s, p, 1, out, stride);
    for (int m = p.first; m < p.last; ++m) {
        float* from = gates + (m - p.first) * TILE;
        float* to = out + m * stride + column;
        const int n = columns_of(up, p.tile);
        activate(i.activation, n, from, from);
        for (int c = 0; c < n; ++c) to[c] *= from[c];
    }
}

void rotate_store(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    Program& program = *s.program;
    const Rotary* rotary = program.rotary(i.rotary);
    const int d = i.head_dim, q = i.heads * d, k = i.kv_heads * d;
    const int64_t stride = program.width(i.in);
    const Cache& cache = program.cache(i.layer);
    const Step& step = program.step();
    const int first = static_cast<int>(item) * SMALL_ROWS, last = std::min(first + SMALL_ROWS, s.rows);
    for (int m = first; m < last; ++m) {
        float* x = program.row(i.in, m);
        if (i.query_norm && i.norm_all) {
            normalize(i.norm, q, x, i.query_norm, nullptr, i.eps, x);
            normalize(i.norm, k, x + q, i.key_norm, nullptr, i.eps, x + q);
        } else if (i.query_norm) {
            for (int h = 0; h < i.heads; ++h) normalize(i.norm, d, x + h * d, i.query_norm, nullptr, i.eps, x + h * d);
            for (int h = 0; h < i.kv_heads; ++h) normalize(i.norm, d, x + q + h * d, i.key_norm, nullptr, i.eps, x + q + h * d);
        }
        if (rotary)
            for (int h = 0; h < i.heads + i.kv_heads; ++h) rotate(*rotary, m, step.positions[m], x + h * d);
    }
    const float* keys = program.row(i.in, 0) + q;
    for (int n = 0; n < step.num_sequences; ++n) {
        const StepSequence& sequence = step.sequences[n];
        const int from = std::max(first, sequence.row), to = std::min(last, sequence.row + sequence.length);
        if (from < to) write_cache(cache, sequence, keys, keys + k, stride, from, to);
    }
}

void attend(Stage& s, int64_t item, int thread) {
    const Instruction& i = *s.instruction;
    Program& p = *s.program;
    s.plan->run_piece(item, thread, p.cache(i.layer), i.rule, p.row(i.in, 0), p.width(i.in), p.row(i.out, 0), p.width(i.out));
}

void merge(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    s.plan->run_merge(item, i.rule, s.program->row(i.out, 0), s.program->width(i.out));
}

void add(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        add_scaled(i.width, s.program->row(i.in, m), i.number, i.vector, s.program->row(i.out, m));
    });
}

void select(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        std::memcpy(s.program->row(i.out, m), s.program->row(i.in, s.program->step().selected[m]), sizeof(float) * i.width);
    });
}

void softcap(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        map(i.width, s.program->row(i.out, m), s.program->row(i.out, m), [&](float v) { return i.number * tanh_fast(v / i.number); });
    });
}

void scale(Stage& s, int64_t item, int) {
    const Instruction& i = *s.instruction;
    each_row(s, item, [&](int64_t m) {
        map(i.width, s.program->row(i.out, m), s.program->row(i.out, m), [&](float v) { return i.number * v; });
    });
}

void Program::add_product(const Instruction& i, int rows) {
    const Linear& first = i.linears[0];
    const int64_t stride = activation_bytes(first.kind, first.in, first.group);
    converted_.reserve(static_cast<size_t>(stride) * rows);
    add(i, convert, rows, row_items(rows));
    stages_.back().converted = &converted_;
    stages_.back().converted_stride = stride;
    const int32_t* chosen = !step_.chosen ? nullptr : selecting_ ? selected_.data() : step_.chosen;
    if (chosen) {
        add(i, shrink, rows, row_items(rows) * i.num_linears);
        stages_.back().chosen = chosen;
    }
    auto* work = i.op == OP_GATED ? gated : i.op == OP_LINEAR_ADD ? linear_add : linear;
    add(i, work, rows, 0);
    Stage& stage = stages_.back();
    stage.chosen = chosen;
    stage.converted = &converted_;
    stage.converted_stride = stride;
    int64_t tiles = 0;
    for (int n = 0; n < (i.op == OP_GATED ? 1 : i.num_linears); ++n)
        tiles += stage.tiles[n] = (i.linears[n].out + TILE - 1) / TILE;
    const int block = i.op == OP_GATED ? GATED_ROWS : ROW_BLOCK;
    items_.back() = tiles * ((rows + block - 1) / block);
}

AttentionPlan& Program::plan_for(const Instruction& i) {
    for (Planned& p : planned_)
        if (p.heads == i.heads && p.kv_heads == i.kv_heads && p.head_dim == i.head_dim && p.window == i.rule.window) {
            if (!p.fresh) p.plan->plan(step_.sequences, step_.num_sequences, p.heads, p.kv_heads, p.head_dim, p.window);
            p.fresh = true;
            return *p.plan;
        }
    planned_.push_back({i.heads, i.kv_heads, i.head_dim, i.rule.window, false, std::make_unique<AttentionPlan>()});
    return plan_for(i);
}

void Program::prepare() {
    for (Planned& p : planned_) p.fresh = false;
    stages_.clear();
    stages_.reserve(instructions_.size() * 3);  // stages are pointed at
    items_.clear();
    for (int n = 0; n < static_cast<int>(buffers_.size()); ++n)
        if (n != instructions_.back().out)  // the result is the caller's memory
            buffers_[n].reserve(sizeof(float) * widths_[n] * std::max(step_.rows, step_.num_selected));
    scratch_.resize(std::max<size_t>(scratch_.size(), pool_threads()));
    for (Buffer& scratch : scratch_) scratch.reserve(sizeof(float) * TILE * std::max(ROW_BLOCK, GATED_ROWS));
    hidden_.reserve(sizeof(float) * MATRICES * std::max(step_.rows, step_.num_selected) * (step_.chosen ? step_.max_rank : 0));
    selecting_ = false;
    int rows = step_.rows;
    for (const Instruction& i : instructions_) {
        switch (i.op) {
            case OP_EMBED: add(i, embed, rows, row_items(rows)); break;
            case OP_ADD_TABLE: add(i, add_table, rows, row_items(rows)); break;
            case OP_NORM: add(i, norm, rows, row_items(rows)); break;
            case OP_LINEAR: case OP_LINEAR_ADD: case OP_GATED: add_product(i, rows); break;
            case OP_ROTATE_STORE: add(i, rotate_store, rows, row_items(rows)); break;
            case OP_ATTEND: {
                AttentionPlan& plan = plan_for(i);
                add(i, attend, rows, plan.pieces(), &plan);
                if (plan.merges()) add(i, merge, rows, plan.merges(), &plan);
                break;
            }
            case OP_ADD: add(i, lm::add, rows, row_items(rows)); break;
            case OP_SELECT: rows = step_.num_selected; choose_selected(); add(i, select, rows, row_items(rows)); break;
            case OP_SOFTCAP: add(i, softcap, rows, row_items(rows)); break;
            case OP_SCALE: add(i, scale, rows, row_items(rows)); break;
        }
        if (rows == 0) break;  // nobody asks for logits
    }
}

}  // namespace
}  // namespace lm

extern "C" {

void* lm_program_new(const lm::Instruction* instructions, int count, const int32_t* buffer_widths, int num_buffers,
                     const lm::Cache* caches, int num_caches) {
    return new lm::Program(instructions, count, buffer_widths, num_buffers, caches, num_caches);
}

void lm_program_set_rotary(void* program, const lm::Rotary* rotaries, int count) {
    static_cast<lm::Program*>(program)->set_rotaries(rotaries, count);
}

void lm_program_run(void* program, const lm::Step* step) { static_cast<lm::Program*>(program)->run(*step); }

void lm_program_profile(void* program, const lm::Step* step, double* seconds) {
    static_cast<lm::Program*>(program)->profile(*step, seconds);
}

void lm_program_free(void* program) { delete static_cast<lm::Program*>(program); }

int lm_program_sizes(int32_t* sizes) {
    const int32_t values[] = {sizeof(lm::Instruction), sizeof(lm::Step), sizeof(lm::Cache), sizeof(lm::Rotary),
                              sizeof(lm::StepSequence), sizeof(lm::Linear), sizeof(lm::ScoreRule),
                              sizeof(lm::LowRank)};
    for (size_t i = 0; i < std::size(values); ++i) sizes[i] = values[i];
    return static_cast<int>(std::size(values));
}

}

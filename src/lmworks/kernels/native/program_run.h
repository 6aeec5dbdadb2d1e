// A program and the stages that a step of it has. Knows no Python.
#pragma once
#include <chrono>
#include <cstdlib>
#include <memory>
#include <vector>

#include "pool.h"
#include "program.h"

namespace lm {

constexpr int ROW_BLOCK = 120;    // rows of one piece of a product; the kernels take twelve at a time
constexpr int SMALL_ROWS = 8;     // rows of one piece of an operation by rows
constexpr int MATRICES = 3;       // of one instruction at most
constexpr int FEW_ROWS = 4;       // every thread normalizes and converts so many for itself sooner than threads meet
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

class Program;
struct Stage;

namespace stage {
void convert(Stage&, int64_t item, int thread);
}

// One piece of work after another, with all that its pieces need to know.
struct Stage {
    Program* program;
    const Instruction* instruction;
    void (*work)(Stage&, int64_t item, int thread);
    int rows = 0;
    int64_t tiles[3] = {};
    AttentionPlan* plan = nullptr;
    int64_t converted_stride = 0;
    bool alone = false;                 // every thread converts the rows of a product for itself,
    const Instruction* norm = nullptr;  // and normalizes them before; null for not
    const int32_t* chosen = nullptr;  // of its rows, see Step
};

class Program {
public:
    Program(const Instruction* instructions, int count, const int32_t* widths, int num_buffers, const Cache* caches, int num_caches)
        : instructions_(instructions, instructions + count), widths_(widths, widths + num_buffers),
          caches_(caches, caches + num_caches), buffers_(num_buffers) {
        for (int n = 0; n < count; ++n) private_norm_.push_back(is_private_norm(n));
    }

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
            const bool converts = stages_[n].work == stage::convert;
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
    // The rows that a product multiplies, converted: those of all threads, or this one's own.
    char* converted(const Stage& s, int thread);
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
    bool is_private_norm(int n) const;
    void add(const Instruction& instruction, void (*work)(Stage&, int64_t, int), int rows, int64_t items, AttentionPlan* plan = nullptr) {
        stages_.push_back({this, &instruction, work, rows, {}, plan});
        items_.push_back(items);
    }
    void add_product(const Instruction& instruction, int rows, const Instruction* norm);
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
    // What a thread converted for itself, and for which stage of this step.
    struct alignas(64) Own { Buffer converted, normalized; const Stage* stage = nullptr; };
    std::vector<Own> own_;
    std::vector<bool> private_norm_;  // by instruction: a norm whose result only the next instruction reads, a product
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

// Pieces of work by kind: `item` of as many as the program counted, on one of the pool's threads.
namespace stage {
void embed(Stage&, int64_t item, int thread);
void add_table(Stage&, int64_t item, int thread);
void norm(Stage&, int64_t item, int thread);
void convert(Stage&, int64_t item, int thread);
void shrink(Stage&, int64_t item, int thread);
void linear(Stage&, int64_t item, int thread);
void linear_add(Stage&, int64_t item, int thread);
void gated(Stage&, int64_t item, int thread);
void rotate_store(Stage&, int64_t item, int thread);
void attend(Stage&, int64_t item, int thread);
void merge(Stage&, int64_t item, int thread);
void add(Stage&, int64_t item, int thread);
void select(Stage&, int64_t item, int thread);
void softcap(Stage&, int64_t item, int thread);
void scale(Stage&, int64_t item, int thread);
}  // namespace stage

inline int64_t row_items(int rows) { return (rows + SMALL_ROWS - 1) / SMALL_ROWS; }

}  // namespace lm

// A pool of threads for operations of microseconds. Knows no operation.
//
// Work is claimed, not assigned: an operation is `items` pieces, every thread takes the next one until none is left, and the
// caller waits only for pieces that somebody holds. A thread that the operating system has put aside therefore delays nobody
// unless it was put aside in the middle of a piece, and with all helpers asleep the caller does everything itself.
// Idle helpers spin for a few microseconds (the next operation usually follows at once), then sleep on a futex.
#pragma once
#include <cstdint>
#include <type_traits>

namespace lm {

// One operation: calls of `work(context, item, thread)` for every item in [0, items), in any order, on any thread.
struct Operation {
    void (*work)(void* context, int64_t item, int thread);
    void* context;
    int64_t items;
};

// Threads that may work at once, the caller included.
int pool_threads();

// Run one operation after the other, all of them in order; item i+1's operation sees all that operation i wrote.
// Only one thread at a time may call; a second caller waits.
void run_operations(const Operation* operations, int count);

// Convenience for a single operation given as a callable `f(item, thread)`.
template <typename F>
void parallel_for(int64_t items, F&& f) {
    Operation operation{[](void* c, int64_t item, int thread) { (*static_cast<std::remove_reference_t<F>*>(c))(item, thread); }, &f, items};
    run_operations(&operation, 1);
}

}  // namespace lm

extern "C" {
// Threads that may work at once from now on, the caller included; at least 1.
void lm_set_threads(int count);
int lm_threads();
}

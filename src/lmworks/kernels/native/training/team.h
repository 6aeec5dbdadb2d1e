// Runs the pieces of an operation on the threads that torch's own operations use. Knows no operation.
//
// Training alternates these operations with torch's matrix products. A second pool of threads would find its cores taken by
// torch's, which look for work for a while after every product, so the pieces run inside a parallel region of the OpenMP
// library that torch has loaded. Its entry point is handed over at run time: nothing here is compiled or linked with OpenMP.
#pragma once
#include <cstdint>
#include <type_traits>

namespace lm {

// Calls `work(context, item)` for every item in [0, items), each once, in any order, on any thread of the team.
void team_run(void (*work)(void* context, int64_t item), void* context, int64_t items);

// The same given as a callable `f(item)`.
template <typename F>
void team_for(int64_t items, F&& f) {
    team_run([](void* c, int64_t item) { (*static_cast<std::remove_reference_t<F>*>(c))(item); }, &f, items);
}

}  // namespace lm

extern "C" {
// `parallel` is GOMP_parallel of a loaded OpenMP library, null for none: the caller then works alone.
void lm_team_library(void* parallel);
// Threads of the team from now on, the caller included.
void lm_team_threads(int count);
}

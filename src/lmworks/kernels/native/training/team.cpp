#include "team.h"

#include <atomic>

namespace lm {
namespace {

using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

Parallel parallel_region = nullptr;
unsigned threads_wanted = 1;

struct Claims {
    void (*work)(void*, int64_t);
    void* context;
    int64_t items;
    std::atomic<int64_t> next{0};
};

void claim(void* data) {
    Claims& claims = *static_cast<Claims*>(data);
    for (int64_t item = claims.next.fetch_add(1); item < claims.items; item = claims.next.fetch_add(1))
        claims.work(claims.context, item);
}

}  // namespace

void team_run(void (*work)(void*, int64_t), void* context, int64_t items) {
    Claims claims{work, context, items};
    if (parallel_region == nullptr || threads_wanted == 1 || items == 1) claim(&claims);
    else parallel_region(claim, &claims, threads_wanted, 0);
}

}  // namespace lm

extern "C" {

void lm_team_library(void* parallel) { lm::parallel_region = reinterpret_cast<lm::Parallel>(parallel); }

void lm_team_threads(int count) { lm::threads_wanted = count < 1 ? 1u : static_cast<unsigned>(count); }

}

// What this machine's memory gives: the limit that decoding is compared with.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "pool.h"

namespace {

constexpr int64_t PIECE = 1 << 18;

uint64_t read_all(const uint64_t* from, int64_t count) {
    // Eight sums, so that additions do not wait for each other.
    uint64_t sums[8] = {};
    for (int64_t i = 0; i + 8 <= count; i += 8)
        for (int lane = 0; lane < 8; ++lane) sums[lane] += from[i + lane];
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total;
}

}  // namespace

extern "C" {

// Bytes per second at which all threads of the pool together read `bytes` bytes, the best of `rounds` passes. The first pass
// writes the memory and does not count.
double lm_read_bandwidth(int64_t bytes, int rounds) {
    constexpr int64_t PAGE = 2 << 20;  // large pages, as weights have them: small ones cost a quarter
    const int64_t size = (bytes + PAGE - 1) / PAGE * PAGE;
    const std::unique_ptr<uint64_t, decltype(&std::free)> memory(static_cast<uint64_t*>(std::aligned_alloc(PAGE, size)), std::free);
#ifdef MADV_HUGEPAGE
    madvise(memory.get(), size, MADV_HUGEPAGE);
#endif
    std::fill_n(memory.get(), size / 8, 1);
    const int64_t pieces = (bytes + PIECE - 1) / PIECE;
    std::vector<uint64_t> sums(pieces);
    double best = 0;
    for (int round = 0; round < rounds; ++round) {
        const auto begin = std::chrono::steady_clock::now();
        lm::parallel_for(pieces, [&](int64_t piece, int) {
            const int64_t first = piece * (PIECE / 8), last = std::min<int64_t>(first + PIECE / 8, bytes / 8);
            sums[piece] = read_all(memory.get() + first, last - first);
        });
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        best = std::max(best, bytes / seconds);
    }
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    return total ? best : 0;  // the sums are used, or the reads would be left out
}

}

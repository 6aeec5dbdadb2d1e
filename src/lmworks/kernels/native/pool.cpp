#include "pool.h"

#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace lm {
namespace {

using Clock = std::chrono::steady_clock;

// How long an idle helper looks for the next run before it sleeps: first as fast as it can, then letting others run. Together
// longer than what usually lies between two steps; to wake a sleeping core of a virtual machine takes up to 100 microseconds.
constexpr auto IDLE_SPIN = std::chrono::microseconds(50);
constexpr auto IDLE_YIELD = std::chrono::microseconds(1500);
constexpr int SPINS_BEFORE_YIELD = 2048;
constexpr int MOST_RUNS_ALONE = 512;
constexpr int MOST_OPERATIONS = 4096;  // of one run
constexpr int MOST_THREADS = 256;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// The pieces of one operation. The upper half of `next` names the run: a thread that slept through the end of a run finds
// another number there and cannot take pieces of a run that it knows nothing of.
struct alignas(64) Claims {
    std::atomic<uint64_t> next{0};
    std::atomic<int64_t> items{0};
    alignas(64) std::atomic<int64_t> done{0};
};

class Pool {
public:
    explicit Pool(int threads) : threads_(threads) {}

    // Never destroyed: helpers may outlive static destructors. A forked child has no helpers and begins anew.
    static Pool*& instance() {
        static Pool* pool = [] {
            pthread_atfork(nullptr, nullptr, [] { instance() = new Pool(instance()->threads_); });
            const char* asked = std::getenv("OMP_NUM_THREADS");  // as other numerical libraries do
            const int count = asked ? std::atoi(asked) : 0;
            return new Pool(std::max(1, count > 0 ? count : static_cast<int>(std::thread::hardware_concurrency())));
        }();
        return pool;
    }

    int threads() const { return threads_; }

    void set_threads(int count) {
        std::lock_guard<std::mutex> lock(callers_);
        threads_ = std::clamp(count, 1, MOST_THREADS);
    }

    void run(const Operation* operations, int count) {
        std::lock_guard<std::mutex> lock(callers_);
        if (threads_ == 1 || alone_ > 0 || (count == 1 && operations->items == 1)) {
            if (alone_ > 0) --alone_;
            for (int i = 0; i < count; ++i)
                for (int64_t item = 0; item < operations[i].items; ++item) operations[i].work(operations[i].context, item, 0);
            return;
        }
        for (int begin = 0; begin < count; begin += MOST_OPERATIONS)
            run_together(operations + begin, std::min(MOST_OPERATIONS, count - begin));
    }

private:
    void run_together(const Operation* operations, int count) {
        while (static_cast<int>(helpers_.size()) < threads_ - 1) {
            std::thread helper([this, thread = static_cast<int>(helpers_.size()) + 1] { help(thread); });
            helpers_.push_back(helper.native_handle());
            helper.detach();
            avoided_ = -1;
        }
        keep_helpers_away();
        const uint64_t run = (run_.load(std::memory_order_relaxed) + 1) & 0xffffffffu;
        for (int i = 0; i < count; ++i) {
            claims_[i].items.store(operations[i].items, std::memory_order_relaxed);
            claims_[i].done.store(0, std::memory_order_relaxed);
            claims_[i].next.store(run << 32, std::memory_order_release);
        }
        operations_.store(operations, std::memory_order_relaxed);
        count_.store(count, std::memory_order_relaxed);
        run_.store(run, std::memory_order_seq_cst);
        if (asleep_.load(std::memory_order_seq_cst) > 0) {
            std::lock_guard<std::mutex> lock(sleep_lock_);
            wake_.notify_all();
        }
        const auto begin = Clock::now();
        stalled_ = Clock::duration::zero();
        work_on(operations, count, run, 0);
        judge(Clock::now() - begin);
    }

    // Keep helpers off the caller's core. Where cores are virtual, Linux takes an idle one for one that its host has taken
    // away, and wakes helpers on the core of the caller, who then waits for them to take turns.
    void keep_helpers_away() {
#ifdef __linux__
        const int core = sched_getcpu();
        if (core < 0 || core == avoided_) return;
        avoided_ = core;
        cpu_set_t allowed;
        if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
        CPU_CLR(core, &allowed);
        for (const pthread_t helper : helpers_) pthread_setaffinity_np(helper, sizeof allowed, &allowed);
#endif
    }

    // When another process has a helper's core, the caller waits whole time slices for pieces that the helper was put aside
    // with, and is faster alone. It stays alone for a while, longer with every attempt that stalls again.
    void judge(Clock::duration whole) {
        if (stalled_ * 4 > whole) alone_ = patience_ = std::min(2 * patience_, MOST_RUNS_ALONE);
        else patience_ = std::max(patience_ / 2, 1);
    }

    // Take part in a run until its last operation is over, or until the run turns out to be over already. `operations` is
    // read only with a piece in hand, which keeps the run from ending.
    void work_on(const Operation* operations, int count, uint64_t run, int thread) {
        for (int n = 0; n < count; ++n) {
            Claims& claims = claims_[n];
            uint64_t next = claims.next.load(std::memory_order_acquire);
            const int64_t items = claims.items.load(std::memory_order_relaxed);
            for (;;) {
                if (next >> 32 != run) return;
                const int64_t item = static_cast<int64_t>(next & 0xffffffffu);
                if (item >= items) break;
                // A share of what is left: claims cost as much as small pieces, and the last ones even out.
                const int64_t taken = std::max<int64_t>(1, (items - item) / (2 * threads_));
                if (!claims.next.compare_exchange_weak(next, next + taken, std::memory_order_acq_rel)) continue;
                for (int64_t i = item; i < item + taken; ++i) operations[n].work(operations[n].context, i, thread);
                claims.done.fetch_add(taken, std::memory_order_acq_rel);
                next = claims.next.load(std::memory_order_acquire);
            }
            for (int spins = 0; claims.done.load(std::memory_order_acquire) < items; ++spins) {
                if (claims.next.load(std::memory_order_acquire) >> 32 != run) return;
                if (spins < SPINS_BEFORE_YIELD) relax();
                else wait_for(claims, items, run, thread);
            }
        }
    }

    // Whoever holds the last pieces was put aside: let others run.
    void wait_for(Claims& claims, int64_t items, uint64_t run, int thread) {
        const auto begin = Clock::now();
        while (claims.done.load(std::memory_order_acquire) < items && claims.next.load(std::memory_order_acquire) >> 32 == run)
            std::this_thread::yield();
        if (thread == 0) stalled_ += Clock::now() - begin;
    }

    // A helper's life: join every run that it notices.
    void help(int thread) {
        uint64_t seen = 0;
        for (;;) {
            const uint64_t run = next_run(seen);
            seen = run;
            if (thread >= threads_) continue;  // fewer are wanted by now
            const Operation* operations = operations_.load(std::memory_order_relaxed);
            const int count = count_.load(std::memory_order_relaxed);
            // If a newer run was published in between, its operations do not match `run` and no piece can be claimed.
            work_on(operations, count, run, thread);
        }
    }

    uint64_t next_run(uint64_t seen) {
        const auto begin = Clock::now();
        for (auto idle = Clock::duration::zero(); idle < IDLE_YIELD; idle = Clock::now() - begin) {
            for (int i = 0; i < 64; ++i) {
                const uint64_t run = run_.load(std::memory_order_acquire);
                if (run != seen) return run;
                relax();
            }
            if (idle > IDLE_SPIN) std::this_thread::yield();
        }
        std::unique_lock<std::mutex> lock(sleep_lock_);
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return run_.load(std::memory_order_seq_cst) != seen; });
        asleep_.fetch_sub(1, std::memory_order_relaxed);
        return run_.load(std::memory_order_acquire);
    }

    std::mutex callers_;
    std::atomic<int> threads_;
    // Under callers_:
    std::vector<pthread_t> helpers_;
    int avoided_ = -1;  // the core that helpers keep off
    int alone_ = 0;     // coming runs without helpers
    int patience_ = 1;  // how many they were the last time
    Clock::duration stalled_{};
    std::atomic<uint64_t> run_{0};
    std::atomic<const Operation*> operations_{nullptr};
    std::atomic<int> count_{0};
    std::atomic<int> asleep_{0};
    std::mutex sleep_lock_;
    std::condition_variable wake_;
    Claims claims_[MOST_OPERATIONS];
};

}  // namespace

int pool_threads() { return Pool::instance()->threads(); }

void run_operations(const Operation* operations, int count) { Pool::instance()->run(operations, count); }

}  // namespace lm

extern "C" {

void lm_set_threads(int count) { lm::Pool::instance()->set_threads(count); }

int lm_threads() { return lm::Pool::instance()->threads(); }

}

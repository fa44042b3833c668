// parallel-for on torch's own OpenMP pool, found at run time: linking to an OpenMP library would bring a second one
// into the process whenever torch ships its own under another name, and two spinning pools on one set of cores are
// slow.
#include "../common.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace edm {
namespace {

struct Job {
    int64_t size, parts;
    Body body;
    void* context;
    std::atomic<bool>* failed;
    // part k of the job; the cut depends on `parts` alone, never on who runs it
    void run(int64_t k) const {
        const int64_t each = size / parts, rest = size % parts;
        const int64_t begin = k * each + std::min(k, rest);
        // bodies may run out of memory, and no exception may pass through OpenMP's frames or leave a worker
        try {
            body(context, begin, begin + each + (k < rest ? 1 : 0));
        } catch (...) {
            *failed = true;
        }
    }
};

// A fork copies the calling thread alone, and OpenMP (or our pool) would wait for the others forever.
std::atomic<bool> forked{false};

void watch_for_forks() {
#if defined(__unix__) || defined(__APPLE__)
    static const int watching = pthread_atfork(nullptr, nullptr, [] { forked = true; });
    (void)watching;
#endif
}

struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread)() = nullptr;
    int (*team)() = nullptr;
    std::string path = "own threads";
};

#if defined(__linux__)
int remember(dl_phdr_info* info, size_t, void* found) {
    const char* base = std::strrchr(info->dlpi_name, '/');
    base = base ? base + 1 : info->dlpi_name;
    for (const char* name : {"libgomp", "libiomp5", "libomp"})
        if (std::strncmp(base, name, std::strlen(name)) == 0)
            static_cast<std::vector<std::string>*>(found)->push_back(info->dlpi_name);
    return 0;
}

OpenMP find_openmp() {
    std::vector<std::string> paths;
    dl_iterate_phdr(remember, &paths);
    // other packages may carry an OpenMP library too; torch's is the one whose threads are warm
    std::stable_partition(paths.begin(), paths.end(),
                          [](const std::string& p) { return p.find("/torch") != std::string::npos; });
    for (const std::string& path : paths) {
        void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
        if (!handle) continue;
        OpenMP omp;
        omp.parallel = reinterpret_cast<decltype(omp.parallel)>(dlsym(handle, "GOMP_parallel"));
        omp.thread = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_thread_num"));
        omp.team = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_num_threads"));
        omp.path = path;
        if (omp.parallel && omp.thread && omp.team) return omp;
    }
    return {};
}
#else
OpenMP find_openmp() { return {}; }
#endif

const OpenMP& openmp() {
    static const OpenMP found = find_openmp();
    return found;
}

void team_member(void* p) {
    const Job& job = *static_cast<Job*>(p);
    const int64_t team = openmp().team();
    for (int64_t k = openmp().thread(); k < job.parts; k += team) job.run(k);
}

// The fallback: workers wait on a condition variable and take parts of the current job. One job at a time.
class Pool {
  public:
    void run(const Job& job) {
        std::lock_guard<std::mutex> one(entry_);
        std::unique_lock<std::mutex> lock(mutex_);
        while (static_cast<int64_t>(workers_.size()) < job.parts - 1) workers_.emplace_back([this] { work(); });
        job_ = &job;
        next_ = 0;
        left_ = job.parts;
        wake_.notify_all();
        take(lock);
        done_.wait(lock, [this] { return left_ == 0; });
        job_ = nullptr;
    }

  private:
    void take(std::unique_lock<std::mutex>& lock) {
        while (job_ && next_ < job_->parts) {
            const Job* job = job_;
            const int64_t k = next_++;
            lock.unlock();
            job->run(k);
            lock.lock();
            if (--left_ == 0) done_.notify_all();
        }
    }
    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return job_ && next_ < job_->parts; });
            take(lock);
        }
    }
    std::mutex entry_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    const Job* job_ = nullptr;
    int64_t next_ = 0, left_ = 0;
};

}  // namespace

const char* thread_pool() { return openmp().path.c_str(); }

void parallel_for(int64_t size, int64_t grain, int threads, Body body, void* context) {
    if (size <= 0) return;
    const int64_t most = (size + grain - 1) / std::max<int64_t>(grain, 1);
    std::atomic<bool> failed{false};
    const Job job{size, std::max<int64_t>(1, std::min<int64_t>(threads, most)), body, context, &failed};
    if (job.parts == 1 || forked) return body(context, 0, size);
    watch_for_forks();
    if (openmp().parallel) {
        openmp().parallel(team_member, const_cast<Job*>(&job), static_cast<unsigned>(job.parts), 0);
    } else {
        static Pool* pool = new Pool;  // never destroyed: its workers outlive static destructors
        pool->run(job);
    }
    if (failed) throw std::bad_alloc();
}

namespace {

constexpr int64_t kFar = 150, kInterval = 100'000'000;  // nanoseconds: of a round trip, and between measurements
std::atomic<int> told{-1};

int64_t now() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// The least nanoseconds from one thread to another and back, by a number that they raise in turn; -1 if one of them was
// not there
int64_t round_trip() {
    constexpr int kTurns = 64, kPatience = 1 << 14;  // looks at the number before a thread gives up
    alignas(64) std::atomic<int> turn{0};
    int64_t least = -1;
    parallel_for(2, 1, 2, [&](int64_t first, int64_t last) {
        int64_t before = 0;
        for (int mine = int(first); last - first == 1 && mine < kTurns; mine += 2) {
            int looks = 0;
            while (turn.load(std::memory_order_acquire) != mine)
                if (++looks > kPatience) return;
            turn.store(mine + 1, std::memory_order_release);
            if (first != 0) continue;
            const int64_t time = now();  // while the number is under way
            if (mine > 2) least = least < 0 ? time - before : std::min(least, time - before);
            before = time;
        }
    });
    return least;
}

}  // namespace

bool far_apart() {
    static std::atomic<int64_t> next{0};
    static std::atomic<bool> far{false};
    if (told >= 0) return told > 0;
    const int64_t time = now();
    if (time >= next) {
        next = time + kInterval;
        const int64_t found = round_trip();
        if (found >= 0) far = found > kFar;
    }
    return far;
}

void set_far_apart(int far) { told = far; }

}  // namespace edm

#include "threads.h"

#include <algorithm>
#include <csignal>

namespace sigrl {

namespace {

// For as long as it lives, threads that are started here are started without signals, which are for the program's own threads.
class WithoutSignals {
public:
    WithoutSignals() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~WithoutSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

private:
    sigset_t before_;
};

}  // namespace

Threads::Threads(int count) {
    const WithoutSignals without;
    try {
        for (int thread = 1; thread < count; thread++) helpers_.emplace_back(&Threads::help, this, thread);
    } catch (...) {
        stop();
        throw;
    }
}

Threads::~Threads() { stop(); }

void Threads::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    has_work_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
}

void Threads::run(Job& job) {
    // A forked process has no helpers, and whoever held the mutex is not there to release it.
    if (job.tasks <= 1 || helpers_.empty() || getpid() != process_) return job.work(0);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        jobs_.push_back(&job);
    }
    if (job.tasks == 2) has_work_.notify_one();
    else has_work_.notify_all();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), &job));  // no helper joins any more
    job_done_.wait(lock, [&] { return job.helpers == 0; });
}

Threads::Job* Threads::waiting_job() {
    for (Job* job : jobs_)
        if (job->next.load(std::memory_order_relaxed) < job->tasks) return job;
    return nullptr;
}

void Threads::help(int thread) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        Job* job = nullptr;
        has_work_.wait(lock, [&] { return stopping_ || (job = waiting_job()) != nullptr; });
        if (stopping_) return;
        job->helpers++;
        lock.unlock();
        job->work(thread);
        lock.lock();
        if (--job->helpers == 0) job_done_.notify_all();
    }
}

}  // namespace sigrl

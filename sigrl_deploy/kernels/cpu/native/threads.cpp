#include "threads.h"

#include <algorithm>

namespace sigrl {

Threads::Threads(int count) {
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
    if (job.tasks <= 1 || helpers_.empty()) return job.work(0);
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

// Threads that share the tasks of a job and sleep when there is none.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unistd.h>
#include <vector>

namespace sigrl {

class Threads {
public:
    // `count` threads in all, the caller of `each` among them. Throws std::system_error where one cannot be started.
    explicit Threads(int count);
    ~Threads();  // not in a process that was forked
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int count() const { return int(helpers_.size()) + 1; }

    // task(index, thread) for every index below `tasks`, where `thread` is below `count()` and in use once at a time in this
    // call. Returns when all are done. Several callers may be in here at once; each takes part in its own tasks. In a process
    // that was forked there are no helpers, and the caller does everything. Tasks must not throw.
    template <class Task> void each(int tasks, Task&& task) {
        Job job;
        job.tasks = tasks;
        job.context = &task;
        job.run = [](void* context, int index, int thread) { (*static_cast<Task*>(context))(index, thread); };
        run(job);
    }

private:
    struct Job {
        std::atomic<int> next{0};
        int tasks = 0;
        int helpers = 0;  // at work on it, guarded by mutex_
        void* context = nullptr;
        void (*run)(void*, int, int) = nullptr;

        void work(int thread) {
            for (int index; (index = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) run(context, index, thread);
        }
    };

    void run(Job& job);
    void help(int thread);
    void stop();
    Job* waiting_job();  // one with tasks left, or null

    const pid_t process_ = getpid();
    std::mutex mutex_;
    std::condition_variable has_work_, job_done_;
    std::vector<Job*> jobs_;
    std::vector<std::thread> helpers_;
    bool stopping_ = false;
};

}  // namespace sigrl

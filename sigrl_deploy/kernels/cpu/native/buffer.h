// Aligned memory for the kernels.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

namespace sigrl {

// Uninitialised. Throws std::bad_alloc.
template <class T> class Buffer {
public:
    Buffer() = default;
    explicit Buffer(size_t count) {
        if (count > std::numeric_limits<size_t>::max() / sizeof(T) - 64) throw std::bad_alloc();
        const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        if (bytes == 0) return;
        void* found = nullptr;
        if (posix_memalign(&found, 64, bytes) != 0) throw std::bad_alloc();
        data_ = static_cast<T*>(found);
#if defined(SIGRL_POISON)  // tests: what is read before it was written shows, since all bits set is NaN
        std::memset(data_, 0xff, bytes);
#endif
    }
    ~Buffer() { std::free(data_); }
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }

    T* get() const { return data_; }
    operator T*() const { return data_; }

private:
    T* data_ = nullptr;
};

}  // namespace sigrl

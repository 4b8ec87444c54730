// Block-shared arrays whose every access is checked: bounds, initialisation, races.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "simt/runtime.h"

namespace simt {

class SharedArray;  // storage and shadow state, in src/shared_memory.cpp

enum class Access { read, write };

// The current block's array for this declaration; made, uninitialised, when its first thread gets
// here.
SharedArray* shared_array(int id, std::int64_t count, std::size_t element_size, const char* type,
                          const Where& where);

// The address of one element, after checking that the current thread may access it now.
void* shared_element(SharedArray* array, std::int64_t index, Access access);

// `array[i]`: converts to the value and can be assigned to. Both only as a temporary, so that `auto
// x = array[i]`, which would copy a value on the GPU but a reference here, cannot be used by
// mistake.
template <typename T>
class SharedReference {
 public:
  SharedReference(SharedArray* array, std::int64_t index) : array_(array), index_(index) {}
  SharedReference(const SharedReference&) = delete;

  operator T() const&& { return load(); }
  T operator=(T value) && { return store(value); }
  T operator=(SharedReference&& other) && { return store(other.load()); }
  T operator+=(T value) && { return store(load() + value); }
  T operator-=(T value) && { return store(load() - value); }
  T operator*=(T value) && { return store(load() * value); }
  T operator|=(T value) && { return store(load() | value); }
  T operator&=(T value) && { return store(load() & value); }

 private:
  T load() const { return *static_cast<const T*>(shared_element(array_, index_, Access::read)); }
  T store(T value) {
    return *static_cast<T*>(shared_element(array_, index_, Access::write)) = value;
  }

  SharedArray* array_;
  std::int64_t index_;
};

template <typename T>
class Shared {
 public:
  explicit Shared(SharedArray* array) : array_(array) {}
  SharedReference<T> operator[](std::int64_t index) const { return {array_, index}; }

 private:
  SharedArray* array_;
};

// What FUSEDSTEP_SHARED(type, name, count) expands to is `auto name = ::simt::shared<type,
// __COUNTER__>(count)`.
template <typename T, int id>
Shared<T> shared(std::int64_t count, Where where = Where::current()) {
  static_assert(std::is_trivially_copyable_v<T>);
  return Shared<T>(shared_array(id, count, sizeof(T), __PRETTY_FUNCTION__, where));
}

}  // namespace simt

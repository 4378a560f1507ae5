// The little of Node-API the addon needs, with errors as C++ exceptions. Nothing here outlives a call.
#pragma once
#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <node_api.h>

namespace millrace::js {

// A JavaScript exception is already on its way.
struct Pending {};

inline void check(napi_env env, napi_status status) {
  if (status == napi_ok) return;
  bool pending = false;
  napi_is_exception_pending(env, &pending);
  if (pending) throw Pending{};
  const napi_extended_error_info* info = nullptr;
  napi_get_last_error_info(env, &info);
  throw std::runtime_error(info && info->error_message ? info->error_message : "Node-API failed");
}

template <class T>
struct TypedArray {
  T* data;
  size_t size;
};

template <class T>
constexpr napi_typedarray_type arrayType();
template <>
constexpr napi_typedarray_type arrayType<int8_t>() { return napi_int8_array; }
template <>
constexpr napi_typedarray_type arrayType<int32_t>() { return napi_int32_array; }
template <>
constexpr napi_typedarray_type arrayType<uint32_t>() { return napi_uint32_array; }
template <>
constexpr napi_typedarray_type arrayType<float>() { return napi_float32_array; }
template <>
constexpr napi_typedarray_type arrayType<double>() { return napi_float64_array; }

// A value with the name it has for messages.
class Value {
 public:
  Value(napi_env env, napi_value value, std::string name)
      : env_(env), value_(value), name_(std::move(name)) {}

  napi_value raw() const { return value_; }

  napi_valuetype type() const {
    napi_valuetype type;
    check(env_, napi_typeof(env_, value_, &type));
    return type;
  }

  bool present() const { return type() != napi_undefined && type() != napi_null; }

  Value get(const char* key) const {
    if (type() != napi_object) fail("an object");
    napi_value value;
    check(env_, napi_get_named_property(env_, value_, key, &value));
    return {env_, value, name_ + "." + key};
  }

  double number() const {
    double x;
    if (napi_get_value_double(env_, value_, &x) != napi_ok) fail("a number");
    return x;
  }

  double integer(double low, double high) const {
    const double x = number();
    if (!(x >= low && x <= high) || x != std::floor(x)) {
      fail("an integer between " + text(low) + " and " + text(high));
    }
    return x;
  }

  int int32(int low = 0, int high = 2147483647) const {
    return static_cast<int>(integer(low, high));
  }

  bool boolean() const {
    bool x;
    if (napi_get_value_bool(env_, value_, &x) != napi_ok) fail("a boolean");
    return x;
  }

  std::string string() const {
    size_t length;
    if (napi_get_value_string_utf8(env_, value_, nullptr, 0, &length) != napi_ok) fail("a string");
    std::string s(length, '\0');
    check(env_, napi_get_value_string_utf8(env_, value_, &s[0], length + 1, &length));
    return s;
  }

  std::vector<Value> array() const {
    uint32_t length;
    if (napi_get_array_length(env_, value_, &length) != napi_ok) fail("an array");
    std::vector<Value> list;
    for (uint32_t i = 0; i < length; i++) {
      napi_value element;
      check(env_, napi_get_element(env_, value_, i, &element));
      list.emplace_back(env_, element, name_ + "[" + std::to_string(i) + "]");
    }
    return list;
  }

  template <class T>
  TypedArray<T> typedArray() const {
    bool is = false;
    check(env_, napi_is_typedarray(env_, value_, &is));
    if (!is) fail("a typed array");
    napi_typedarray_type type;
    size_t length;
    void* data;
    check(env_, napi_get_typedarray_info(env_, value_, &type, &length, &data, nullptr, nullptr));
    if (type != arrayType<T>()) fail("a typed array of another type");
    return {static_cast<T*>(data), length};
  }

  void call(double argument) const {
    napi_value undefined, number;
    check(env_, napi_get_undefined(env_, &undefined));
    check(env_, napi_create_double(env_, argument, &number));
    check(env_, napi_call_function(env_, undefined, value_, 1, &number, nullptr));
  }

  // What this function returns, without arguments.
  Value result() const {
    napi_value undefined, value;
    check(env_, napi_get_undefined(env_, &undefined));
    check(env_, napi_call_function(env_, undefined, value_, 0, nullptr, &value));
    return {env_, value, name_ + "()"};
  }

  // Runs `body`; the values it got may be collected afterwards, not only when the call returns.
  template <class Body>
  void scope(Body&& body) const {
    struct Scope {
      napi_env env;
      napi_handle_scope scope;
      explicit Scope(napi_env env) : env(env) { check(env, napi_open_handle_scope(env, &scope)); }
      ~Scope() { napi_close_handle_scope(env, scope); }
    } scope(env_);
    body();
  }

  [[noreturn]] void fail(const std::string& expected) const {
    throw std::invalid_argument("expected " + expected + " for " + name_);
  }

 private:
  static std::string text(double x) { return std::to_string(static_cast<long long>(x)); }

  napi_env env_;
  napi_value value_;
  std::string name_;
};

// Builds an object property by property.
class Object {
 public:
  explicit Object(napi_env env) : env_(env) { check(env, napi_create_object(env, &value_)); }
  napi_value raw() const { return value_; }

  void set(const char* key, double x) {
    napi_value value;
    check(env_, napi_create_double(env_, x, &value));
    set(key, value);
  }
  void set(const char* key, const std::string& s) {
    napi_value value;
    check(env_, napi_create_string_utf8(env_, s.data(), s.size(), &value));
    set(key, value);
  }
  void set(const char* key, napi_value value) {
    check(env_, napi_set_named_property(env_, value_, key, value));
  }

 private:
  napi_env env_;
  napi_value value_;
};

using Arguments = std::vector<Value>;

// A native function with `COUNT` arguments: exceptions become JavaScript errors with these codes.
template <napi_value (*BODY)(napi_env, const Arguments&), size_t COUNT>
napi_value wrap(napi_env env, napi_callback_info info) {
  const auto raise = [env](const char* code, const char* message) {
    napi_throw_error(env, code, message);
    return nullptr;
  };
  try {
    size_t count = COUNT;
    napi_value values[COUNT + 1];
    check(env, napi_get_cb_info(env, info, &count, values, nullptr, nullptr));
    Arguments arguments;
    for (size_t i = 0; i < COUNT; i++) {
      arguments.emplace_back(env, values[i], "argument " + std::to_string(i));
    }
    return BODY(env, arguments);
  } catch (const Pending&) {
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return raise("ERR_NATIVE_ARGUMENT", error.what());
  } catch (const std::bad_alloc&) {
    return raise("ERR_NATIVE_MEMORY", "the system refused the memory asked for");
  } catch (const std::exception& error) {
    return raise("ERR_NATIVE", error.what());
  }
}

template <napi_value (*BODY)(napi_env, const Arguments&), size_t COUNT>
void define(napi_env env, napi_value exports, const char* name) {
  napi_value function;
  check(env, napi_create_function(env, name, NAPI_AUTO_LENGTH, wrap<BODY, COUNT>, nullptr, &function));
  check(env, napi_set_named_property(env, exports, name, function));
}

// A native object in JavaScript's hands; the tag tells it from other externals.
template <class T, const napi_type_tag& TAG>
struct Handle {
  static napi_value make(napi_env env, std::unique_ptr<T> object) {
    auto holder = std::make_unique<std::unique_ptr<T>>(std::move(object));
    napi_value external;
    check(env, napi_create_external(env, holder.get(), destroy, nullptr, &external));
    holder.release();
    check(env, napi_type_tag_object(env, external, &TAG));
    return external;
  }

  // Empty once it is closed.
  static std::unique_ptr<T>& holder(napi_env env, const Value& value) {
    bool ours = false;
    if (value.type() == napi_external) {
      check(env, napi_check_object_type_tag(env, value.raw(), &TAG, &ours));
    }
    if (!ours) value.fail("a runner");
    void* data;
    check(env, napi_get_value_external(env, value.raw(), &data));
    return *static_cast<std::unique_ptr<T>*>(data);
  }

  static T& get(napi_env env, const Value& value) {
    auto& object = holder(env, value);
    if (!object) value.fail("a runner that is not closed");
    return *object;
  }

 private:
  static void destroy(napi_env, void* data, void*) { delete static_cast<std::unique_ptr<T>*>(data); }
};

}  // namespace millrace::js

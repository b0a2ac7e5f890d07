// An HTTP handler in C, by the canonical ABI itself: what a generator of bindings would write for `handler.wit`, and no
// more than it needs. Answers with the path that it was asked for, and with how many requests it has seen.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define TYPES "wasi:http/types@0.2.0"

IMPORT(TYPES, "[constructor]fields") int32_t fields_new(void);
IMPORT(TYPES, "[method]incoming-request.path-with-query") void request_path(int32_t request, void *result);
IMPORT(TYPES, "[constructor]outgoing-response") int32_t response_new(int32_t fields);
IMPORT(TYPES, "[method]outgoing-response.set-status-code") int32_t response_status(int32_t response, int32_t code);
IMPORT(TYPES, "[method]outgoing-response.body") void response_body(int32_t response, void *result);
IMPORT(TYPES, "[method]outgoing-body.write") void body_write(int32_t body, void *result);
IMPORT(TYPES, "[static]outgoing-body.finish") void body_finish(int32_t body, int32_t some, int32_t fields, void *result);
IMPORT(TYPES, "[static]response-outparam.set")
void outparam_set(int32_t out, int32_t error, int32_t response, int32_t, int64_t, int32_t, int32_t, int32_t, int32_t);
IMPORT("wasi:io/streams@0.2.0", "[method]output-stream.blocking-write-and-flush")
void stream_write(int32_t stream, const char *text, size_t length, void *result);
IMPORT("wasi:io/streams@0.2.0", "[resource-drop]output-stream") void stream_drop(int32_t stream);

// What the host returns lies in memory that it asks for by this name.
__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    (void)old_size;
    (void)align;
    void *memory = realloc(old, size);
    if (!memory) abort();
    return memory;
}

// A result whose payload is a resource: whether it is an error, and the resource.
typedef struct {
    uint8_t error;
    int32_t resource;
} made_t;

__attribute__((export_name("wasi:http/incoming-handler@0.2.0#handle"))) void handle(int32_t request, int32_t out) {
    static int count = 0;
    struct {
        uint8_t some;
        const char *text;
        size_t length;
    } path;
    made_t body, stream;
    _Alignas(8) char ignored[64];
    char text[256];

    request_path(request, &path);
    if (path.length == 6 && !memcmp(path.text, "/abort", 6)) abort();
    int length = snprintf(text, sizeof text, "%.*s %d\n", (int)path.length, path.text, ++count);
    int32_t response = response_new(fields_new());
    if (response_status(response, 201)) abort();
    response_body(response, &body);
    outparam_set(out, 0, response, 0, 0, 0, 0, 0, 0);
    body_write(body.resource, &stream);
    stream_write(stream.resource, text, (size_t)length, ignored);
    stream_drop(stream.resource);
    body_finish(body.resource, 0, 0, ignored);
}

// Going from one stack to another by hand: a switch costs a few nanoseconds, and the kernel of the system never hears of it.
#pragma once

#if defined(__x86_64__)
// Saves what a callee must keep and goes to another stack.
asm(R"(
.text
.type metal_host_switch,@function
metal_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size metal_host_switch,.-metal_host_switch
)");
constexpr unsigned saved_words = 6, entry_word = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 2
metal_host_switch:
_metal_host_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
constexpr unsigned saved_words = 20, entry_word = 11;
#else
#error "the switch of fibers is written for x86-64 and AArch64"
#endif
// Leaves the stack pointer of this stack in *from and goes on where `to` left off.
extern "C" void metal_host_switch(void **from, void *to);

namespace metal_host {

// Such a pointer for a stack that has yet to begin, at `begin`; its end is 16-byte aligned.
inline void *fresh_stack(void *end, void (*begin)()) {
    // As after a call: the stack is aligned before the return address.
    void **frame = static_cast<void **>(end) - 2 - saved_words - 2;
    frame[entry_word] = reinterpret_cast<void *>(begin);
    return frame;
}

} // namespace metal_host

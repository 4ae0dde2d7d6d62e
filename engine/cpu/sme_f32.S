// float32 outer products: 16 rows x 64 columns of outputs stay in ZA while K ascends, an FMA for each step.
#include "sme_asm.h"

// The four tiles from memory.
.macro load_tile tile, from
        ld1w {z0.s-z3.s}, pn8/z, [\from]
        ld1w {z4.s-z7.s}, pn8/z, [\from, #4, mul vl]
        ld1w {z8.s-z11.s}, pn8/z, [\from, #8, mul vl]
        ld1w {z12.s-z15.s}, pn8/z, [\from, #12, mul vl]
        mova za\tile\()h.s[w12, 0:3], {z0.s-z3.s}
        mova za\tile\()h.s[w13, 0:3], {z4.s-z7.s}
        mova za\tile\()h.s[w14, 0:3], {z8.s-z11.s}
        mova za\tile\()h.s[w15, 0:3], {z12.s-z15.s}
        add \from, \from, #1024
.endm

// x0 SmeF32: x1 a, x2 bytes from tile to tile, x3 b, x4 c, x5 k, x6 tiles, x7 carry
.macro arguments
        ldp x1, x2, [x0]
        ldp x3, x4, [x0, #16]
        ldp x5, x6, [x0, #32]
        ldr x7, [x0, #48]
.endm

// ZA starts from zero, or from what the steps before gave.
.macro start_tiles
        zero {za}
        cbz x7, 1f
        mov x8, x4
        load_tile 0, x8
        load_tile 1, x8
        load_tile 2, x8
        load_tile 3, x8
1:
.endm

// All tiles from x1 on.
.macro all_tiles
7:      start_tiles
        mov x8, x1
        mov x9, x3
        add x11, x1, x2
        chain fmopa, s, x8, x9, x5, x10, x11
        store_tiles x4
        add x1, x1, x2
        subs x6, x6, #1
        b.ne 7b
.endm

        .globl SYMBOL(puna_sme_f32)
        .p2align 4
SYMBOL(puna_sme_f32):
        arguments
        enter
        all_tiles
        leave

// The first tile reads B from the panels of a matrix of dense weights, x13.. being needed for slices only meanwhile, and
// leaves it packed for the tiles that follow.
.macro first_tile load, widen
        ldp x16, x17, [x0, #56]         // four panels, K-major, 16 columns each
        ldp x10, x11, [x0, #72]
        start_tiles
        mov x8, x1
        mov x9, x3
        mov x0, x5
8:      \load {z8.s}, p0/z, [x16]
        \load {z9.s}, p0/z, [x17]
        \load {z10.s}, p0/z, [x10]
        \load {z11.s}, p0/z, [x11]
        ld1w {z0.s}, p0/z, [x8]
        \widen 8
        \widen 9
        \widen 10
        \widen 11
        outer fmopa, s, 0, 8, 9, 10, 11
        st1w {z8.s-z11.s}, pn8, [x9]
        add x8, x8, #64
        add x9, x9, #256
.endm
.macro next_panels bytes
        add x16, x16, #\bytes
        add x17, x17, #\bytes
        add x10, x10, #\bytes
        add x11, x11, #\bytes
        subs x0, x0, #1
        b.ne 8b
        store_tiles x4
        add x1, x1, x2
        subs x6, x6, #1
        b.eq 9f
        all_tiles
9:
.endm
.macro as_it_is z
.endm
.macro from_f16 z
        fcvt z\z\().s, p0/m, z\z\().h
.endm
.macro from_bf16 z
        lsl z\z\().s, z\z\().s, #16
.endm

        .globl SYMBOL(puna_sme_f32_first_f32)
        .p2align 4
SYMBOL(puna_sme_f32_first_f32):
        arguments
        enter
        first_tile ld1w, as_it_is
        next_panels 64
        leave

        .globl SYMBOL(puna_sme_f32_first_f16)
        .p2align 4
SYMBOL(puna_sme_f32_first_f16):
        arguments
        enter
        first_tile ld1h, from_f16
        next_panels 32
        leave

        .globl SYMBOL(puna_sme_f32_first_bf16)
        .p2align 4
SYMBOL(puna_sme_f32_first_bf16):
        arguments
        enter
        first_tile ld1h, from_bf16
        next_panels 32
        leave

// 16 rows to k-major: x0 sixteen pointers, x1 how many values, x2 where to. Whole sixteens of k are written, zeros behind
// the last value.
.macro four_rows at, w
        ldp x5, x6, [x0, #\at]
        ldp x7, x8, [x0, #\at+16]
        ld1w {z0.s, z4.s, z8.s, z12.s}, pn9/z, [x5, x3, lsl #2]
        ld1w {z1.s, z5.s, z9.s, z13.s}, pn9/z, [x6, x3, lsl #2]
        ld1w {z2.s, z6.s, z10.s, z14.s}, pn9/z, [x7, x3, lsl #2]
        ld1w {z3.s, z7.s, z11.s, z15.s}, pn9/z, [x8, x3, lsl #2]
        mova za0h.s[\w, 0:3], {z0.s-z3.s}
        mova za1h.s[\w, 0:3], {z4.s-z7.s}
        mova za2h.s[\w, 0:3], {z8.s-z11.s}
        mova za3h.s[\w, 0:3], {z12.s-z15.s}
.endm

        .globl SYMBOL(puna_sme_f32_pack)
        .p2align 4
SYMBOL(puna_sme_f32_pack):
        enter
        mov x3, #0
1:      whilelt pn9.s, x3, x1, vlx4
        four_rows 0, w12
        four_rows 32, w13
        four_rows 64, w14
        four_rows 96, w15
        sub x4, x1, x3
        store_columns 0, x2
        cmp x4, #16
        b.le 2f
        store_columns 1, x2
        cmp x4, #32
        b.le 2f
        store_columns 2, x2
        cmp x4, #48
        b.le 2f
        store_columns 3, x2
        add x3, x3, #64
        cmp x3, x1
        b.lt 1b
2:      leave

        .globl SYMBOL(puna_sme_vector_bytes)
        .p2align 4
SYMBOL(puna_sme_vector_bytes):
        rdsvl x0, #1
        ret

// What the SME files share: names as the object format wants them, and the way into streaming mode and back.
//
// Streaming mode is entered and left inside one function, which calls nothing meanwhile. Both steps zero the vector
// registers, of which a caller keeps d8 to d15. x18 belongs to the system. `;` would start a comment for Apple.
#pragma once

#if defined(__APPLE__)
#define SYMBOL(name) _##name
#else
#define SYMBOL(name) name
        .section .note.GNU-stack, "", %progbits
#endif
        .arch armv8.2-a+sme2
        .text

.macro enter
        stp d8, d9, [sp, #-80]!
        stp d10, d11, [sp, #16]
        stp d12, d13, [sp, #32]
        stp d14, d15, [sp, #48]
        str x19, [sp, #64]
        smstart
        ptrue p0.b
        ptrue pn8.s
        mov w12, #0             // the slices of a tile, four at a time
        mov w13, #4
        mov w14, #8
        mov w15, #12
.endm

.macro leave
        smstop
        ldr x19, [sp, #64]
        ldp d14, d15, [sp, #48]
        ldp d12, d13, [sp, #32]
        ldp d10, d11, [sp, #16]
        ldp d8, d9, [sp], #80
        ret
.endm

// The four tiles to memory, 16 x 16 words each: 4 KB from `to`, which moves behind them.
.macro store_tile tile, to
        mova {z0.s-z3.s}, za\tile\()h.s[w12, 0:3]
        mova {z4.s-z7.s}, za\tile\()h.s[w13, 0:3]
        mova {z8.s-z11.s}, za\tile\()h.s[w14, 0:3]
        mova {z12.s-z15.s}, za\tile\()h.s[w15, 0:3]
        st1w {z0.s-z3.s}, pn8, [\to]
        st1w {z4.s-z7.s}, pn8, [\to, #4, mul vl]
        st1w {z8.s-z11.s}, pn8, [\to, #8, mul vl]
        st1w {z12.s-z15.s}, pn8, [\to, #12, mul vl]
        add \to, \to, #1024
.endm
.macro store_tiles to
        store_tile 0, \to
        store_tile 1, \to
        store_tile 2, \to
        store_tile 3, \to
.endm

// The columns of a tile to memory, which transposes what came in as rows: 1 KB from `to`, which moves behind it.
.macro store_columns tile, to
        mova {z0.s-z3.s}, za\tile\()v.s[w12, 0:3]
        mova {z4.s-z7.s}, za\tile\()v.s[w13, 0:3]
        mova {z8.s-z11.s}, za\tile\()v.s[w14, 0:3]
        mova {z12.s-z15.s}, za\tile\()v.s[w15, 0:3]
        st1w {z0.s-z3.s}, pn8, [\to]
        st1w {z4.s-z7.s}, pn8, [\to, #4, mul vl]
        st1w {z8.s-z11.s}, pn8, [\to, #8, mul vl]
        st1w {z12.s-z15.s}, pn8, [\to, #12, mul vl]
        add \to, \to, #1024
.endm

// One step of K: 16 rows (one vector) times 64 columns (four) into the four tiles.
.macro outer op, width, a, b0, b1, b2, b3
        \op za0.s, p0/m, p0/m, z\a\().\width, z\b0\().\width
        \op za1.s, p0/m, p0/m, z\a\().\width, z\b1\().\width
        \op za2.s, p0/m, p0/m, z\a\().\width, z\b2\().\width
        \op za3.s, p0/m, p0/m, z\a\().\width, z\b3\().\width
.endm

// Four steps whose A is in z\a0..z\a3 and whose first three B are in z8-z19. With `more` they load those of the next
// four, A into z\n0-z\n3. The core prefetches the same steps of the next tile of A from `ahead`.
.macro four op, width, a0, a1, a2, a3, n0, n3, more, a, b, ahead
        ld1w {z20.s-z23.s}, pn8/z, [\b, #12, mul vl]
  .if \more
        ld1w {z\n0\().s-z\n3\().s}, pn8/z, [\a, #4, mul vl]
  .endif
        prfm pldl2keep, [\ahead]
        prfm pldl2keep, [\ahead, #128]
        outer \op, \width, \a0, 8, 9, 10, 11
  .if \more
        ld1w {z8.s-z11.s}, pn8/z, [\b, #16, mul vl]
  .endif
        outer \op, \width, \a1, 12, 13, 14, 15
  .if \more
        ld1w {z12.s-z15.s}, pn8/z, [\b, #20, mul vl]
  .endif
        outer \op, \width, \a2, 16, 17, 18, 19
  .if \more
        ld1w {z16.s-z19.s}, pn8/z, [\b, #24, mul vl]
  .endif
        outer \op, \width, \a3, 20, 21, 22, 23
        add \a, \a, #256
        add \b, \b, #1024
        add \ahead, \ahead, #256
.endm

// `count` steps in ascending order; a and b move behind them. Uses `left`; reads nothing behind the last step.
.macro chain op, width, a, b, count, left, ahead
        lsr \left, \count, #2
        cbz \left, 4f
        ld1w {z0.s-z3.s}, pn8/z, [\a]
        ld1w {z8.s-z11.s}, pn8/z, [\b]
        ld1w {z12.s-z15.s}, pn8/z, [\b, #4, mul vl]
        ld1w {z16.s-z19.s}, pn8/z, [\b, #8, mul vl]
        subs \left, \left, #2
        b.le 2f
1:      four \op, \width, 0, 1, 2, 3, 4, 7, 1, \a, \b, \ahead
        four \op, \width, 4, 5, 6, 7, 0, 3, 1, \a, \b, \ahead
        subs \left, \left, #2
        b.gt 1b
2:      b.lt 3f
        four \op, \width, 0, 1, 2, 3, 4, 7, 1, \a, \b, \ahead
        four \op, \width, 4, 5, 6, 7, 0, 3, 0, \a, \b, \ahead
        b 4f
3:      four \op, \width, 0, 1, 2, 3, 4, 7, 0, \a, \b, \ahead
4:      ands \left, \count, #3
        b.eq 6f
5:      ld1w {z0.s}, p0/z, [\a]
        ld1w {z8.s-z11.s}, pn8/z, [\b]
        outer \op, \width, 0, 8, 9, 10, 11
        add \a, \a, #64
        add \b, \b, #256
        subs \left, \left, #1
        b.ne 5b
6:
.endm

def step(args):
    w, x, on_cpu, = args
    args.clear()
    lr = cell.value
    del on_cpu
    mul, add,  = recorded0([w, x])
    del w, x
    mul_1 = aten_mul_Tensor(add, lr)
    del add, lr
    mul = mul.clone()
    return [mul, mul_1]

def recorded0(args):
    w, x, = args
    args.clear()
    mul = aten_mul_Tensor(w, x)
    del w
    add = aten_add_Tensor(mul, x)
    del x
    return [mul, add]

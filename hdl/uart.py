"""A serial line: eight bits, no parity, one stop bit."""

from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out


class UartReceiver(wiring.Component):
    """Bytes from a line.

    Attributes
    ----------
    rx : In(1)
        The line, from any clock domain.
    data : Out(8)
        A byte, while `valid`.
    valid : Out(1)
        High for one clock.
    broken : Out(1)
        High for one clock where a stop bit was missing; there is no byte then.
    """

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor  #: clocks a bit
        super().__init__({"rx": In(1), "data": Out(8), "valid": Out(1), "broken": Out(1)})

    def elaborate(self, _platform: object) -> Module:
        """Build the receiver."""
        m = Module()
        line = Signal(init=1)
        m.submodules += FFSynchronizer(self.rx, line, init=1)
        wait = Signal(range(self.divisor + self.divisor // 2))
        bits_left = Signal(range(10))
        held = Signal()  # low since a stop bit was missing: this is no start bit
        m.d.sync += self.valid.eq(0), self.broken.eq(0)
        with m.If(line):
            m.d.sync += held.eq(0)
        with m.If((bits_left == 0) & (line | held)):
            m.d.sync += wait.eq(0)
        with m.Elif(bits_left == 0):  # a start bit: the first bit's middle is one and a half away
            m.d.sync += wait.eq(self.divisor + self.divisor // 2 - 1), bits_left.eq(9)
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.Else():
            m.d.sync += wait.eq(self.divisor - 1), bits_left.eq(bits_left - 1)
            with m.If(bits_left == 1):
                m.d.sync += self.valid.eq(line), self.broken.eq(~line), held.eq(~line)
            with m.Else():
                m.d.sync += self.data.eq(Cat(self.data[1:], line))
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a line.

    Attributes
    ----------
    bytes : In(stream)
        What is to be sent.
    tx : Out(1)
        The line, high while nothing is sent.
    """

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor  #: clocks a bit
        super().__init__({"bytes": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, _platform: object) -> Module:
        """Build the transmitter."""
        m = Module()
        wait = Signal(range(self.divisor))
        bits_left = Signal(range(11))
        shifter = Signal(9)
        m.d.comb += self.bytes.ready.eq(bits_left == 0)
        with m.If(bits_left == 0), m.If(self.bytes.valid):
            m.d.sync += [
                self.tx.eq(0),
                shifter.eq(Cat(self.bytes.payload, 1)),
                bits_left.eq(10),
                wait.eq(self.divisor - 1),
            ]
        with m.Elif(wait != 0):
            m.d.sync += wait.eq(wait - 1)
        with m.Else():
            m.d.sync += [
                self.tx.eq(shifter[0]),
                shifter.eq(Cat(shifter[1:], 1)),
                bits_left.eq(bits_left - 1),
                wait.eq(self.divisor - 1),
            ]
        return m

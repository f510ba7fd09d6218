// The device with a register at each of its inputs, for software that drives it clock by clock.
//
// Software makes `clk` low, sets inputs, looks at outputs, and makes `clk` high. Where nothing is
// to be seen for long, it lets `quiet` clocks pass by a rising `go` instead: inputs stay, and
// `done` rises after the last one, or when `clk` is low and an output is another than in the clock
// before. `quiet` is what is left then.
// Written by hand in Verilog, not generated, so that it shares nothing with what it tests.

`timescale 1ns / 1ns

module ports #(
    parameter SAMPLE = 12,  // bits of samples__payload
    parameter PIXEL  = 10   // bits of pixels__payload
);
  reg clk = 1;
  reg rst = 0;
  reg samples__valid = 0, commands__valid = 0, pixels__ready = 0, registers__write = 0;
  reg [SAMPLE-1:0] samples__payload = 0;
  reg [9:0] commands__payload = 0;
  reg [2:0] registers__address = 0;
  reg [31:0] registers__write_data = 0;
  wire samples__ready, commands__ready, pixels__valid, busy, error;
  wire [PIXEL-1:0] pixels__payload;
  wire [15:0] frames, dropped;
  wire [31:0] registers__read_data;

  retina dut (
      .clk(clk),
      .rst(rst),
      .samples__payload(samples__payload),
      .samples__valid(samples__valid),
      .samples__ready(samples__ready),
      .commands__payload(commands__payload),
      .commands__valid(commands__valid),
      .commands__ready(commands__ready),
      .pixels__payload(pixels__payload),
      .pixels__valid(pixels__valid),
      .pixels__ready(pixels__ready),
      .registers__address(registers__address),
      .registers__write(registers__write),
      .registers__write_data(registers__write_data),
      .registers__read_data(registers__read_data),
      .busy(busy),
      .frames(frames),
      .dropped(dropped),
      .error(error)
  );

  reg go = 0;
  reg done = 0;
  reg [31:0] quiet = 0;
  wire [PIXEL+68:0] seen = {
    samples__ready, commands__ready, pixels__valid, pixels__payload,
    busy, error, frames, dropped, registers__read_data
  };
  reg [PIXEL+68:0] shown = 0;
  always @(posedge clk) shown <= seen;

  reg same;
  always @(posedge go) begin
    done = 0;
    same = 1;
    while (same && quiet != 0) begin
      clk = 0;
      #1;
      same = seen === shown;
      if (same) begin
        clk = 1;
        #1;
        quiet = quiet - 1;
      end
    end
    done = 1;
  end
endmodule

// Test harness around the array: one event a step for the software that drives it.
//
// `load` and `state` hold a whole array, so that the simulator and Python meet once a step instead
// of once a clock. On a rising `start` it loads `words` through the register port (if `load`), sends
// the samples of `mask` for the first `targets` words of the cells (if `sense`), runs one step, reads every channel back through the pixel stream
// (if `fetch`), and ends the frame (if `forget`). `watched` is high from clock `watch_from`
// of the step on.
// Written by hand in Verilog, not generated, so that it shares nothing with what it tests.

`timescale 1ns / 1ns

module harness #(
    parameter HEIGHT = 16,
    parameter WIDTH = 16,
    parameter CHANNELS = 10,
    parameter WORD_BITS = 8,
    parameter SAMPLE_BITS = 8,
    parameter X_BITS = 4,
    parameter Y_BITS = 4,
    parameter TARGETS = 11,
    parameter TARGET_BITS = 4,
    parameter INSTRUCTIONS = 1
);
  // What software writes and reads. No ports: a simulator would copy all of them in each clock.
  reg        start = 0;
  reg        load = 0;
  reg        sense = 0;
  reg        fetch = 0;
  reg        forget = 0;
  reg [31:0] watch_from = 0;
  reg [INSTRUCTIONS*64-1:0]                 words = 0;
  reg [TARGETS*HEIGHT*WIDTH-1:0]             mask = 0;
  reg [TARGETS*HEIGHT*WIDTH*SAMPLE_BITS-1:0] samples = 0;
  reg [7:0]  targets = 0;
  reg        done = 1;
  reg        watched = 0;
  reg [31:0] cycles = 0;
  reg        marks_wrong = 0;
  reg [CHANNELS*HEIGHT*WIDTH*WORD_BITS-1:0] state = 0;

  localparam CELLS = HEIGHT * WIDTH;
  localparam OP_RUN = 2'd1, OP_FORGET = 2'd2, OP_READ = 2'd3;
  localparam IDLE = 3'd0, SENSE = 3'd1, RUN = 3'd2, READ = 3'd3, RECEIVE = 3'd4, FORGET = 3'd5,
             SETTLE = 3'd6, LOAD = 3'd7;
  localparam PROGRAM_ADDRESS = 3'd3, PROGRAM_LOW = 3'd4, PROGRAM_HIGH = 3'd5;

  reg clk = 0;
  always #1 clk = !clk;

  reg [1:0] reset = 2'b11;
  always @(posedge clk) reset <= reset >> 1;

  reg  [2:0]  phase = IDLE;
  reg         started = 0;
  reg  [31:0] index = 0;    // of the cell
  reg  [31:0] half = 0;     // of the program: its 32-bit words
  reg  [7:0]  channel = 0;
  reg  [7:0]  target = 0;
  reg  [31:0] x = 0, y = 0; // of cell `index`

  wire sample_ready, command_ready, pixel_valid, busy;
  wire [WORD_BITS+1:0] pixel;
  wire [31:0] place = target * CELLS + index;
  wire sample_valid = phase == SENSE && mask[place];
  wire command_valid = phase == RUN || phase == READ || phase == FORGET;
  wire [1:0] op = phase == RUN ? OP_RUN : phase == READ ? OP_READ : OP_FORGET;
  wire [7:0] argument = phase == RUN ? 8'd1 : channel;

  wire first = index == 0;
  wire last_of_row = x == WIDTH - 1;
  wire last = index == CELLS - 1;

  retina dut (
      .clk(clk),
      .rst(reset[0]),
      .samples__payload({
        target[TARGET_BITS-1:0],
        samples[place*SAMPLE_BITS+:SAMPLE_BITS],
        y[Y_BITS-1:0],
        x[X_BITS-1:0]
      }),
      .samples__valid(sample_valid),
      .samples__ready(sample_ready),
      .commands__payload({argument, op}),
      .commands__valid(command_valid),
      .commands__ready(command_ready),
      .pixels__payload(pixel),
      .pixels__valid(pixel_valid),
      .pixels__ready(phase == RECEIVE),
      .registers__address(phase != LOAD ? PROGRAM_ADDRESS : half[0] ? PROGRAM_HIGH : PROGRAM_LOW),
      .registers__write(phase == LOAD ? !busy : load),
      .registers__write_data(phase == LOAD ? words[half*32+:32] : 32'd0),
      .busy(busy)
  );

  wire next_cell = phase == SENSE ? !mask[place] || sample_ready : phase == RECEIVE && pixel_valid;

  always @(posedge clk) begin
    cycles <= cycles + 1;
    started <= start;
    if (next_cell) begin
      index <= last ? 0 : index + 1;
      x <= last_of_row ? 0 : x + 1;
      y <= last ? 0 : last_of_row ? y + 1 : y;
    end
    case (phase)
      IDLE: begin
        if (start && !started) begin
          done <= 0;
          channel <= 0;
          target <= 0;
          half <= 0;
          phase <= load ? LOAD : sense ? SENSE : RUN;
        end
      end
      LOAD:
      if (!busy) begin  // after reset, the device is
        half <= half + 1;
        if (half == 2 * INSTRUCTIONS - 1) phase <= sense ? SENSE : RUN;
      end
      SENSE:
      if (next_cell && last) begin
        target <= target + 1;
        if (target == targets - 1) phase <= RUN;
      end
      RUN: if (command_ready) phase <= fetch ? READ : forget ? FORGET : SETTLE;
      READ: if (command_ready) phase <= RECEIVE;
      RECEIVE:
      if (pixel_valid) begin
        // Not `<=`: a simulator would keep a second copy of all of it.
        state[(channel*CELLS+index)*WORD_BITS+:WORD_BITS] = pixel[WORD_BITS-1:0];
        if (pixel[WORD_BITS] != first || pixel[WORD_BITS+1] != last_of_row) marks_wrong <= 1;
        if (last) begin
          channel <= channel + 1;
          phase <= channel != CHANNELS - 1 ? READ : forget ? FORGET : SETTLE;
        end
      end
      FORGET: if (command_ready) phase <= SETTLE;
      SETTLE:
      if (!busy) begin
        done <= 1;
        phase <= IDLE;
      end
    endcase
  end

  // Clocks since the step began, for whoever wants to watch some of them.
  reg [31:0] clock = 0;
  always @(posedge clk) begin
    clock  <= phase == RUN ? 0 : clock + 1;
    watched <= phase != RUN && phase != SENSE && phase != LOAD && clock >= watch_from;
  end
endmodule

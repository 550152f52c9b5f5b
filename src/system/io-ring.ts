/**
 * io_uring(7): several reads and writes by one system call. Each call of a thread costs 0.2 us or more on its way in and out of the kernel
 * alone (1 us on processors that need all mitigations), and koffi's part.
 *
 *   sqes   64 bytes each: what is to be done
 *   rings  one piece of memory: head and tail of both rings, then completions of 16 bytes each
 *
 * JavaScript writes the one and reads the other in place. One thread owns the ring, and the kernel does its part only while that thread is
 * in the call (IORING_SETUP_DEFER_TASKRUN): plain loads and stores are enough. Needs Linux 6.1; containers and sysctl kernel.io_uring_disabled often forbid it.
 */
import * as fs from 'node:fs';
import { constants } from 'node:os';
import { koffi } from './koffi';
import { declare, declareOther, lastErrno, lastError, SystemError } from './libc';

const { EAGAIN, EBUSY, EINTR } = constants.errno;

/** x86-64, arm64 and most others. */
const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;

const SETUP_SINGLE_ISSUER = 1 << 12;
const SETUP_DEFER_TASKRUN = 1 << 13;
const FEATURE_SINGLE_MMAP = 1 << 0;
const ENTER_GETEVENTS = 1 << 0;

const MAP_RINGS = 0;
const MAP_SQES = 0x10000000;
const PROT_READ_WRITE = 0x3;
const MAP_SHARED_POPULATE = 0x8001;
/** (void *) -1 */
const MAP_FAILED = 2n ** 64n - 1n;

/** struct io_uring_params: flags u32 at 8, features u32 at 20, offsets of the submission ring from 40 on, of the completion ring from 80 on. */
const PARAMS_BYTES = 120;
const PARAMS = {
  FLAGS: 8,
  FEATURES: 20,
  SQ_HEAD: 40,
  SQ_TAIL: 44,
  SQ_MASK: 48,
  SQ_ARRAY: 64,
  CQ_HEAD: 80,
  CQ_TAIL: 84,
  CQ_MASK: 88,
  CQES: 100,
};

/** struct io_uring_sqe in words: opcode and flags, fd, offset (2), address (2), length, flags of the operation, user data (2). */
const SQE_BYTES = 64;
const SQE_WORDS = SQE_BYTES / 4;
/** struct io_uring_cqe in words: user data (2), result, flags. */
const CQE_BYTES = 16;
const CQE_WORDS = CQE_BYTES / 4;

const OP_READ = 22;
const OP_WRITE = 23;
/** The next one begins when this one has succeeded in full; else it ends with ECANCELED. */
const LINK_NEXT = (1 << 2) << 8;

const TWO_32 = 2 ** 32;

const setupCall = declare<[number, number, Buffer]>(
  'int64_t syscall(int64_t number, unsigned int entries, void *params)',
);
const enterCall = declare<[number, number, number, number, number, number, number]>(
  'int64_t syscall(int64_t number, int fd, unsigned int submit, unsigned int complete, unsigned int flags, int64_t argument, int64_t size)',
);
const mmapCall = declareOther<[number, number, number, number, number, number], unknown>(
  'void *mmap(int64_t address, int64_t length, int protection, int flags, int fd, int64_t offset)',
);
const munmapCall = declareOther<[unknown, number], number>('int munmap(void *address, int64_t length)');

export class IoRing {
  /** Results of the last `run`, in the order of the pushes: bytes, or a negative errno. */
  readonly results: Int32Array;
  private pushed = 0;

  /**
   * @param entries most operations at a time, a power of two
   * Throws what the kernel says where it has no io_uring, or this process may not use it.
   */
  static open(entries: number): IoRing {
    const params = Buffer.alloc(PARAMS_BYTES);
    params.writeUInt32LE(SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN, PARAMS.FLAGS);
    const fd = setupCall(SYS_IO_URING_SETUP, entries, params);
    if (fd < 0) throw lastError('io_uring_setup');
    const memories: Memory[] = [];
    try {
      // Some sandboxes allow the one call and not the other.
      if (enterCall(SYS_IO_URING_ENTER, fd, 0, 0, 0, 0, 0) < 0) throw lastError('io_uring_enter');
      if ((params.readUInt32LE(PARAMS.FEATURES) & FEATURE_SINGLE_MMAP) === 0)
        throw new SystemError(constants.errno.ENOSYS, 'io_uring_setup');
      // Twice as many completions as entries, as the kernel has it.
      const completionsEnd = params.readUInt32LE(PARAMS.CQES) + 2 * entries * CQE_BYTES;
      const ringBytes = Math.max(params.readUInt32LE(PARAMS.SQ_ARRAY) + entries * 4, completionsEnd);
      memories.push(new Memory(fd, ringBytes, MAP_RINGS));
      memories.push(new Memory(fd, entries * SQE_BYTES, MAP_SQES));
      return new IoRing(fd, entries, params, memories);
    } catch (error) {
      for (const memory of memories) memory.unmap();
      fs.closeSync(fd);
      throw error;
    }
  }

  private readonly words: Int32Array;
  private readonly sqes: Int32Array;
  private readonly at: { sqHead: number; sqTail: number; cqHead: number; cqTail: number; cqes: number };
  private readonly sqMask: number;
  private readonly cqMask: number;

  private constructor(
    private readonly fd: number,
    private readonly entries: number,
    params: Buffer,
    private readonly memories: readonly Memory[],
  ) {
    const field = (at: number): number => params.readUInt32LE(at);
    [this.words, this.sqes] = memories.map(({ words }) => words);
    this.at = {
      sqHead: field(PARAMS.SQ_HEAD) / 4,
      sqTail: field(PARAMS.SQ_TAIL) / 4,
      cqHead: field(PARAMS.CQ_HEAD) / 4,
      cqTail: field(PARAMS.CQ_TAIL) / 4,
      cqes: field(PARAMS.CQES) / 4,
    };
    this.sqMask = this.words[field(PARAMS.SQ_MASK) / 4];
    this.cqMask = this.words[field(PARAMS.CQ_MASK) / 4];
    // The places of the submission ring name those of the sqes: each its own, for ever.
    for (let place = 0; place < entries; place++) this.words[field(PARAMS.SQ_ARRAY) / 4 + place] = place;
    this.results = new Int32Array(entries);
  }

  /** @param thenNext the next push is only done when this one was done in full; its result is else -ECANCELED */
  pushRead(fd: number, address: number, length: number, offset: number, thenNext: boolean): void {
    this.push(
      thenNext ? OP_READ | LINK_NEXT : OP_READ,
      fd,
      address,
      length,
      offset % TWO_32,
      Math.floor(offset / TWO_32),
    );
  }

  /** To a descriptor that has no position. */
  pushWrite(fd: number, address: number, length: number): void {
    this.push(OP_WRITE, fd, address, length, -1, -1);
  }

  /** Does all that was pushed, and returns when all of it has ended. */
  run(): void {
    const { words, at, results } = this;
    for (let ended = 0; ended < this.pushed; ) {
      const waiting = (words[at.sqTail] - words[at.sqHead]) | 0;
      const taken = enterCall(SYS_IO_URING_ENTER, this.fd, waiting, this.pushed - ended, ENTER_GETEVENTS, 0, 0);
      if (taken < 0) {
        const errno = lastErrno();
        if (errno !== EINTR && errno !== EAGAIN && errno !== EBUSY) throw new SystemError(errno, 'io_uring_enter');
      } else if (taken < waiting && this.isLinked(words[at.sqHead] - 1)) {
        // Out of memory in the midst of a chain: its rest would not wait for what it depends on.
        throw new SystemError(constants.errno.ENOMEM, 'io_uring_enter');
      }
      let head = words[at.cqHead];
      for (const tail = words[at.cqTail]; head !== tail; head = (head + 1) | 0, ended++) {
        const cqe = at.cqes + (head & this.cqMask) * CQE_WORDS;
        results[words[cqe]] = words[cqe + 2];
      }
      words[at.cqHead] = head;
    }
    this.pushed = 0;
  }

  close(): void {
    fs.closeSync(this.fd);
    for (const memory of this.memories) memory.unmap();
  }

  private isLinked(place: number): boolean {
    return (this.sqes[(place & this.sqMask) * SQE_WORDS] & LINK_NEXT) !== 0;
  }

  private push(operation: number, fd: number, address: number, length: number, low: number, high: number): void {
    const { words, sqes, at } = this;
    if (this.pushed === this.entries) throw new RangeError(`a ring for ${this.entries} operations is full`);
    const tail = words[at.sqTail];
    const sqe = (tail & this.sqMask) * SQE_WORDS;
    sqes[sqe] = operation;
    sqes[sqe + 1] = fd;
    sqes[sqe + 2] = low;
    sqes[sqe + 3] = high;
    sqes[sqe + 4] = address % TWO_32;
    sqes[sqe + 5] = Math.floor(address / TWO_32);
    sqes[sqe + 6] = length;
    // All other words stay 0, as they were made.
    sqes[sqe + 8] = this.pushed++;
    words[at.sqTail] = (tail + 1) | 0;
  }
}

/** Memory of the kernel's that this process sees. */
class Memory {
  readonly words: Int32Array;
  private readonly start: unknown;

  constructor(
    fd: number,
    private readonly bytes: number,
    offset: number,
  ) {
    this.start = mmapCall(0, bytes, PROT_READ_WRITE, MAP_SHARED_POPULATE, fd, offset);
    if (koffi.address(this.start) === MAP_FAILED) throw lastError('mmap');
    this.words = new Int32Array(koffi.view(this.start, bytes));
  }

  /** Nobody may look at `words` any more. */
  unmap(): void {
    munmapCall(this.start, this.bytes);
  }
}

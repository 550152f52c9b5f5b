/** poll(2) on one descriptor, on a thread of libuv's pool. */
import { declare } from './libc';

export const POLLIN = 0x001;
export const POLLPRI = 0x002;
export const POLLERR = 0x008;

/**
 * Longest single wait, ms. The end of a process joins the pool's threads, so a longer one would delay `process.exit()`.
 */
const SLICE_MS = 1000;

/** struct pollfd: fd i32 at 0, events i16 at 4, revents i16 at 6. */
const POLLFD_BYTES = 8;

const pollCall = declare<[Buffer, number, number]>('int poll(void *fds, unsigned long count, int timeout)');

function pollOnce(fd: number, events: number, timeoutMs: number): Promise<number> {
  const entry = Buffer.alloc(POLLFD_BYTES);
  entry.writeInt32LE(fd, 0);
  entry.writeInt16LE(events, 4);
  return new Promise((resolve, reject) => {
    pollCall.async(entry, 1, timeoutMs, (error: unknown, count: number) => {
      if (error) reject(error);
      // A failure is a signal (a bad descriptor is an event, POLLNVAL); errno stays on the thread that made the call.
      else resolve(count > 0 ? entry.readInt16LE(6) : 0);
    });
  });
}

/**
 * Waits until one of `events`, or an error, has happened. Keeps the process alive meanwhile. The descriptor stays open until then.
 * @returns what has happened, as POLL bits; 0 when the time is over
 */
export async function pollDescriptor(fd: number, events: number, timeoutMs: number): Promise<number> {
  const end = performance.now() + timeoutMs;
  for (;;) {
    const left = Math.max(0, end - performance.now());
    const happened = await pollOnce(fd, events, Math.ceil(Math.min(left, SLICE_MS)));
    if (happened !== 0 || left === 0) return happened;
  }
}

/** The same question again and again on one descriptor, without waiting and without garbage: for a thread that spins. */
export class ReadablePoll {
  private readonly entry = Buffer.alloc(POLLFD_BYTES);

  constructor(fd: number) {
    this.entry.writeInt32LE(fd, 0);
    this.entry.writeInt16LE(POLLIN, 4);
  }

  /** There is something to read, or an error to be met by reading. */
  ready(): boolean {
    return pollCall(this.entry, 1, 0) !== 0;
  }
}

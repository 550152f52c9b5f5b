/** Waiting for the end of a process that need not be our child. */
import * as fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { declare, lastErrno } from './libc';
import { POLLIN, pollDescriptor } from './poll';

/** The same number on every architecture. */
const SYS_PIDFD_OPEN = 434;
const ESRCH = 3;

/** Between two looks where the kernel has no pidfd (older than 5.3, or a sandbox forbids it). */
const FALLBACK_INTERVAL_MS = 20;

const syscall = declare<[number, number, number]>('long syscall(long number, long a, long b)');

/**
 * Waits until process `pid` has ended; a zombie, whose files are closed already, counts as ended.
 * @returns false when it still lives after `timeoutMs`
 */
export async function waitForExit(pid: number, timeoutMs: number): Promise<boolean> {
  const fd = syscall(SYS_PIDFD_OPEN, pid, 0);
  if (fd < 0) return lastErrno() === ESRCH ? true : watchExit(pid, timeoutMs);
  try {
    return (await pollDescriptor(fd, POLLIN, timeoutMs)) !== 0;
  } finally {
    fs.closeSync(fd);
  }
}

async function watchExit(pid: number, timeoutMs: number): Promise<boolean> {
  const end = performance.now() + timeoutMs;
  while (isAlive(pid)) {
    if (performance.now() >= end) return false;
    await sleep(FALLBACK_INTERVAL_MS);
  }
  return true;
}

/** Does the process run, whoever owns it? False for a zombie. */
export function isAlive(pid: number): boolean {
  try {
    // "PID (NAME) STATE ...": the name may hold anything, parentheses too. The state is that of the first thread: as long as others are
    // still ending, the files are open. Their number is field 20.
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1');
    const [state = '', ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return !/^[ZX]/.test(state) || Number(fields[16]) > 1;
  } catch {
    // No such entry: it has ended. /proc shows every process but where it is mounted with hidepid; then kill(2) tells.
    return existsByKill(pid);
  }
}

function existsByKill(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

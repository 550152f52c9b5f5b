import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import type { SessionKind } from '../../src/fuse/session';
import { eventsOf, type Server } from './harness';
import { type EventName, patternByte } from './memory-filesystem';

export interface SuiteOptions {
  session: SessionKind;
  kernelCache?: boolean;
  /** What this session can carry at all. */
  carries: {
    fallocate: boolean;
    lseek: boolean;
    /** Whether a single write is to be flushed (RWF_DSYNC); O_SYNC of the whole file always gets through. */
    syncOfOneWrite: boolean;
    sharedMapping: boolean;
  };
  /** How many cases must run: a suite must not shrink to nothing unseen. */
  cases: number;
}

export const MIB = 1024 * 1024;

export type Case = (t: ExecutionContext, server: Server) => void | Promise<void>;

export function expectedBytes(offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let index = 0; index < length; index++) bytes[index] = patternByte(offset + index);
  return bytes;
}

/** How often each event has happened while `action` ran. */
export async function eventsDuring(
  server: Server,
  action: () => void | Promise<void>,
): Promise<Record<EventName, number>> {
  const before = await eventsOf(server);
  await action();
  const after = await eventsOf(server);
  return Object.fromEntries(
    Object.entries(after).map(([name, count]) => [name, count - before[name as EventName]]),
  ) as Record<EventName, number>;
}

export async function withFile<Result>(
  server: Server,
  name: string,
  flags: string | number,
  use: (handle: fs.promises.FileHandle) => Promise<Result> | Result,
): Promise<Result> {
  const handle = await fs.promises.open(path.join(server.mountpoint, name), flags);
  try {
    return await use(handle);
  } finally {
    await handle.close();
  }
}

/** By number: Node has no name for EDQUOT. */
export function errnoName(error: NodeJS.ErrnoException | undefined): string | undefined {
  return Object.entries(os.constants.errno).find(([, number]) => number === -(error?.errno ?? 0))?.[0];
}

export async function readAt(handle: fs.promises.FileHandle, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xee);
  const { bytesRead } = await handle.read(buffer, 0, length, offset);
  return buffer.subarray(0, bytesRead);
}

export type Run = (title: string, body: Case) => void;

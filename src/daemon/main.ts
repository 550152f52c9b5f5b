/**
 * The daemon's process: reads its orders from the control socket, mounts, says so, and serves until the mount is gone.
 * Its command line is how `imagefs list` and `imagefs umount` find it (config.ts).
 */
import fs from 'node:fs';
import net from 'node:net';
import createDebug from 'debug';
import { BlockError } from '../errors';
import { exitNow } from '../system/exit';
import { setProcessName } from '../system/prctl';
import { CONTROL_FD, type DaemonConfig, type DaemonMessage } from './config';
import { Journal } from './journal';
import { LastWords } from './last-words';
import { LiveMount } from './mount';

const SIGNALS: NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/** One line of JSON. The command writes it at once, so waiting here is short. */
function readConfig(): DaemonConfig {
  const chunk = Buffer.alloc(65536);
  const parts: Buffer[] = [];
  for (;;) {
    const length = fs.readSync(CONTROL_FD, chunk);
    if (length === 0) throw new Error('the control socket was closed before the configuration came');
    parts.push(Buffer.from(chunk.subarray(0, length)));
    if (chunk[length - 1] === 10) return JSON.parse(Buffer.concat(parts).toString('utf8')) as DaemonConfig;
  }
}

function send(message: DaemonMessage): void {
  fs.writeSync(CONTROL_FD, `${JSON.stringify(message)}\n`);
}

function failureOf(error: unknown): DaemonMessage {
  if (error instanceof BlockError) return { kind: 'failed', code: error.code, message: error.message };
  const { message, stack } = error instanceof Error ? error : new Error(String(error));
  return {
    kind: 'failed',
    code: 'IO',
    message: `Internal error: ${message}`,
    ...(stack === undefined ? {} : { stack }),
  };
}

async function main(): Promise<void> {
  const config = readConfig();
  if (config.debug) createDebug.enable('imagefs:*');
  // Debug output that nobody reads any more is no reason to end.
  process.stderr.on('error', () => {});
  setProcessName('imagefs');

  // Signals count from the beginning: one that comes while the images open is obeyed once they are mounted.
  let asked: string | undefined;
  let mount: LiveMount | undefined;
  const leave = (why: string): void => {
    asked ??= why;
    void mount?.leave(why);
  };
  for (const signal of SIGNALS) process.on(signal, () => leave(`Got ${signal}`));

  let journal: Journal;
  try {
    journal = new Journal(config.foreground, config.log);
    mount = await LiveMount.start(config, journal, new LastWords());
  } catch (error) {
    send(failureOf(error));
    process.exit(1);
  }
  process.on('uncaughtException', (error) => mount?.fail(`Internal error: ${error.message}`));
  if (asked !== undefined) leave(asked);
  announce(config, mount, leave);

  const end = await mount.ended;
  if (end.kind === 'lost') exitNow(1);
  process.exit(end.exitCode);
}

function announce(config: DaemonConfig, mount: LiveMount, leave: (why: string) => void): void {
  try {
    send({ kind: 'mounted', warnings: mount.warnings });
  } catch {
    leave('The command that asked for the mount has gone');
  }
  if (!config.foreground) {
    fs.closeSync(CONTROL_FD);
    return;
  }
  // The socket says when the command has gone, even by SIGKILL. It must not keep the process alive.
  const parent = new net.Socket({ fd: CONTROL_FD });
  parent.on('error', () => {});
  parent.once('close', () => leave('The command in the foreground has gone'));
  parent.resume().unref();
}

main().catch((error: unknown) => {
  // A mistake of ours outside of every plan. Ending by force closes /dev/fuse: the mount is dead but nobody waits for it.
  process.stderr.write(`imagefs: Internal error: ${error instanceof Error ? error.stack : String(error)}\n`);
  exitNow(1);
});

import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';

export const ROOT = path.resolve(__dirname, '..', '..', '..');
export const IS_ROOT = process.getuid?.() === 0;

/** A script that takes longer hangs: none takes more than a few seconds on a quiet machine. */
const LIMIT_MS = 90_000;

export interface ScriptResult {
  code: number | null;
  output: string;
}

/** Runs a program to its end; standard output and error as they came. Only its own output counts, not that of daemons. */
export function runProgram(
  command: string,
  args: string[],
  options: { cwd: string; env?: NodeJS.ProcessEnv },
): Promise<ScriptResult> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, ...options.env };
    const child = spawn(command, args, { cwd: options.cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
    const chunks: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => chunks.push(chunk));
    const limit = setTimeout(() => {
      chunks.push(Buffer.from(`\nstopped: not finished after ${LIMIT_MS / 1000} s\n`));
      child.kill('SIGTERM');
      child.stdout.destroy();
      child.stderr.destroy();
    }, LIMIT_MS);
    child.on('error', reject);
    child.on('close', (code) => {
      clearTimeout(limit);
      resolve({ code, output: Buffer.concat(chunks).toString('utf8') });
    });
  });
}

/** A directory of this test's own. At the end whatever is still mounted in it is unmounted, and it is removed. */
export function makeDirectory(t: ExecutionContext): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
  t.teardown(async () => {
    const code = `
      while read -r _ target _; do case "$target" in "$1"/*) echo "$target" ;; esac; done < /proc/self/mounts | sort -r |
        while read -r target; do "$2" umount --lazy "$target" || umount -l "$target"; done
      grep -qF " $1/" /proc/self/mounts || rm -rf "$1"`;
    await runProgram('bash', ['-c', code, 'bash', directory, path.join(ROOT, 'bin', 'imagefs')], { cwd: '/' });
  });
  return directory;
}

/** Says why something is left out; fails where everything is required. */
export function leaveOut(t: ExecutionContext, reason: string): void {
  t.log(`left out: ${reason}`);
  if (process.env.IMAGEFS_REQUIRE_ALL === '1') t.fail(`${reason}, and IMAGEFS_REQUIRE_ALL is set`);
  else t.pass();
}

/**
 * Many commands of imagefs in one process that is not the test's: starting a process for each would take most of a test's time.
 * Each runs through `main`, as the command does, one after the other.
 */
import fs from 'node:fs';
import { main } from '../../src/cli/main';
import { mountHelper } from '../../src/cli/mount-helper';
import { HANG_MS, run } from './cli';

/** Stands behind the output of each command, on both streams. */
const MARK = '\0end\0';

/** As on the command line; first word `mount.imagefs` for the helper of mount(8), else a command of imagefs. */
export type CommandWords = readonly string[];

export interface CommandResult {
  code: number;
  stdout: string;
  stderr: string;
}

export async function runCommands(cwd: string, commands: readonly CommandWords[]): Promise<CommandResult[]> {
  const ran = await run(process.execPath, [__filename, JSON.stringify(commands)], {
    cwd,
    hangMs: HANG_MS * commands.length,
  });
  if (ran.signal !== null) throw new Error(`the commands were ended by ${ran.signal}: ${ran.stdout}${ran.stderr}`);
  const [out, err] = [ran.stdout, ran.stderr].map((text) => text.split(MARK));
  const codes = JSON.parse(out?.pop() ?? '') as number[];
  return codes.map((code, index) => ({ code, stdout: out?.[index] ?? '', stderr: err?.[index] ?? '' }));
}

async function serve(commands: readonly CommandWords[]): Promise<void> {
  const codes: number[] = [];
  for (const [name = '', ...words] of commands) {
    codes.push(name === 'mount.imagefs' ? await mountHelper(words) : await main([name, ...words]));
    for (const fd of [1, 2]) fs.writeSync(fd, MARK);
  }
  fs.writeSync(1, JSON.stringify(codes));
}

if (require.main === module) {
  void serve(JSON.parse(process.argv[2] ?? '[]') as CommandWords[]).then(() => process.exit(0));
}

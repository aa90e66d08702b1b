"""What the conformance tests share: npm packages, fetched once into the build folder."""
import os
import shutil
import subprocess


def install(source, folder, names):
	"""The files of these names, and the packages of package-lock.json, in `folder`; None, or why they are not there."""
	for program in ("node", "npm"):
		if shutil.which(program) is None:
			return "%s is not installed (Debian: apt-get install nodejs npm)" % program
	os.makedirs(folder, exist_ok=True)
	for name in names:
		shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
	stamp = os.path.join(folder, "installed")
	with open(os.path.join(source, "package-lock.json")) as f:
		lock = f.read()
	if os.path.exists(stamp):
		with open(stamp) as f:
			if f.read() == lock:
				return None
	env = dict(os.environ, npm_config_cache=os.path.join(folder, "cache")) if not os.access(os.path.expanduser("~"), os.W_OK) else None
	done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=2"], cwd=folder, env=env,
		stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
	if done.returncode != 0:
		return "npm ci failed in %s. It needs the npm registry once; without a network set REFRESHD_OFFLINE=1.\n%s" % (folder, done.stdout[-1500:])
	with open(stamp, "w") as f:
		f.write(lock)
	return None
